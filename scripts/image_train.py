"""Trains CausalDiffAE, Diff-SCM or a baseline.

    python scripts/image_train.py --config configs/morphomnist_causaldae_mini.yaml --data_dir DATA --run_dir RUN
    python scripts/image_train.py ... --masking True --label_fraction 0.1      # labels for a tenth of the images
    python scripts/image_train.py ... --config configs/baselines/diffae.yaml             # a baseline on the same data
    python scripts/image_train.py ... --recipe reference                       # as the published code

Every field of the configuration is a flag (`--help` lists them); later values override earlier ones. Run the same
command again to resume an interrupted run. SIGTERM, SIGUSR1 and --max_hours end a run after the current step, with a
checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import warnings

import torch
import yaml

from causaldiffae import dist_util
from causaldiffae.checkpoints.checkpoint import CONFIG, load_checkpoint
from causaldiffae.checkpoints.folder_layout import BESIDE_STEPS, BEST, BEST_FILES, RESPONSES
from causaldiffae.checkpoints.remote import RemoteRun, run_folder
from causaldiffae.config import Config, TrainConfig
from causaldiffae.datasets.folder.image_folder import has_split
from causaldiffae.datasets.images import ImageData, spread_or_all
from causaldiffae.datasets.label_subsets import with_labels_of
from causaldiffae.datasets.reference import TrainingReference
from causaldiffae.datasets.registry import dataset_spec, find_dataset, read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import InputError, check_given
from causaldiffae.evaluation.run_page import write_run_page
from causaldiffae.files.reading import read_json
from causaldiffae.files.storage import is_remote
from causaldiffae.logger import PROGRESS, Logger, read_progress
from causaldiffae.model import LabelModel
from causaldiffae.nn import count_parameters
from causaldiffae.predictors.predictor import open_predictor
from causaldiffae.published.autoencoder import keep_in_run, network_spec
from causaldiffae.script_util import Model, create_model_and_diffusion, parse_config, run_cli
from causaldiffae.train_util import TrainLoop
from causaldiffae.training.codes import encode_split, open_codec
from causaldiffae.training.devices import describe_device, use_device
from causaldiffae.training.estimate import estimate
from causaldiffae.training.preflight import check_platform, option_warnings, out_of_memory_message, training_warnings
from causaldiffae.training.responses import describe as describe_responses
from causaldiffae.training.responses import write_responses
from causaldiffae.training.resuming import checkpoint_to_resume
from causaldiffae.training.run_lock import lock_run_dir
from causaldiffae.training.saving import LOGS, upload_logs
from causaldiffae.training.stopping import StopRequest

PREVIEW_IMAGES = 32
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


def describe(config: Config, spec: DatasetSpec, model: Model) -> str:
    """Formats the resolved configuration as YAML, with its digest and the sizes of the networks as comments."""
    lines = [yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(), f"# configuration {config.digest()}"]
    lines.append(
        f"# data set {spec.name}: {spec.channels}x{spec.image_size}x{spec.image_size}, graph {spec.graph.edges}"
    )
    lines += [f"# {name}: {count_parameters(part):,} parameters" for name, part in model.named_children()]
    return "\n".join(lines)


def with_value(argv: list[str], flag: str) -> list[str]:
    """Adds the value True to a flag without one."""
    following = [*argv[1:], "--"]
    bare = [argument == flag and after.startswith("--") for argument, after in zip(argv, following, strict=True)]
    return [f"{argument}=True" if alone else argument for argument, alone in zip(argv, bare, strict=True)]


def mask_labels(config: Config, data: ImageData) -> ImageData:
    """Keeps the labels of the configured fraction; rank 0 writes their list beside the data, other ranks read it."""
    loss, folder = config.loss, config.train.data_dir
    fraction, seed, by_variable = loss.label_fraction, loss.label_seed, loss.mask_by == "variable"
    if dist_util.is_main():
        with_labels_of(data, fraction, seed, folder, by_variable=by_variable)
    dist_util.barrier()
    return with_labels_of(data, fraction, seed, folder, write=False, by_variable=by_variable)


def preview_images(train: TrainConfig, data: ImageData) -> ImageData:
    """Validation images; without any, test images, or training images if `train_until` chooses weights by them."""
    spec = data.spec
    has_validation = find_dataset(train.dataset).spec is None and has_split(train.data_dir, spec, "val")
    if train.train_until and not has_validation:
        return data.subset(spread_or_all(PREVIEW_IMAGES, len(data)))
    split = "val" if has_validation else "test"
    return read_split(train.dataset, train.data_dir, split, limit=PREVIEW_IMAGES, spec=spec)


def find_resume_step(train: TrainConfig) -> int:
    """Returns the step that the run resumes from, 0 for a new run; called in all processes."""
    resumed = checkpoint_to_resume(train.resume_checkpoint, train.run_dir)
    return 0 if resumed is None else dist_util.from_main(lambda: load_checkpoint(resumed).step or 0)


def train_model(config: Config, spec: DatasetSpec, stop: StopRequest) -> None:
    """Reads the data, and trains or resumes in the run directory."""
    train = config.train
    data = read_split(train.dataset, train.data_dir, "train", limit=train.num_images or None, spec=spec)
    test = preview_images(train, data)
    codec = open_codec(train, spec, dist_util.dev())
    codes = None if codec is None else encode_split(data, codec, train.data_dir)
    if train.label_predictor:
        open_predictor(spec, train.label_predictor)  # reports a predictor that does not fit before training
    if config.loss.masking:
        data = mask_labels(config, data)
    with contextlib.ExitStack() as held:
        dist_util.from_main(lambda: held.enter_context(lock_run_dir(train.run_dir)))
        resume_step = find_resume_step(train)
        run_dir = run_folder(train.run_dir)
        if is_remote(train.run_dir) and dist_util.is_main():
            RemoteRun(train.run_dir).fetch_logs((*LOGS, *BEST_FILES))
        if codec is not None:
            dist_util.from_main(lambda: keep_in_run(codec, run_dir))
            upload_logs(train, BESIDE_STEPS)
        logger = Logger(run_dir, train.tensorboard, resume_step)
        loop = TrainLoop(config, data, logger, test, stop, codes)
        logger.info(f"device: {describe_device()}")
        train = loop.config.train  # with the options that training has chosen
        if dist_util.is_main():
            text = describe(loop.config, spec, loop.model)
            print(text, flush=True)
            (run_dir / "config.yaml").write_text(text + "\n", encoding="utf-8")
            TrainingReference.fit(data).write(run_dir)
            of_data = training_warnings(train, data, dist_util.world_size(), isinstance(loop.model, LabelModel))
            for sentence in (*option_warnings(loop.config), *of_data):
                warnings.warn(sentence, stacklevel=1)
        loop.run()
        logger.close()
        if loop.responses.latest:
            write_responses(run_dir, loop.responses.latest)
            logger.info("\n".join(describe_responses(loop.responses.latest, loop.images_seen)))
        if dist_util.is_main() and read_progress(run_dir / PROGRESS)[1]:
            logger.info(f"curves and graph: {write_run_page(run_dir, run_dir / 'plots')[-1]}")
        upload_logs(train, (*LOGS, RESPONSES))  # the last row follows the last checkpoint
        if dist_util.is_main() and (run_dir / BEST).is_dir():
            step = read_json(run_dir / BEST / CONFIG)["trained_steps"]
            logger.info(f"best step: {step}, its weights are in {run_dir / BEST}")
        if loop.stopped and (reason := loop.responses.stop_reason()):
            logger.info(f"finished after step {loop.step}: {reason}")
        elif loop.stopped:
            reason = stop.reason() or "requested by another process"
            logger.info(f"stopped after step {loop.step}: {reason}; run the same command to resume")


def main(argv: list[str]) -> None:
    config = parse_config(with_value(argv, "--dry_run"), __doc__ or "")
    train = config.train
    if train.dry_run and not train.dataset:
        raise InputError(
            "dataset: expected a value, got none; set --config FILE or --dataset NAME; "
            "`causaldiffae estimate --data_dir my_images` compares all sizes for your own images"
        )
    check_given(train, "dataset", *(() if train.dry_run else ("data_dir", "run_dir")))
    if not train.dry_run:
        check_platform()
    size, channels = train.image_size or None, train.channels or None
    spec = dataset_spec(train.dataset, size, channels, data_dir=train.data_dir or None, graph=train.graph or None)
    sizes = network_spec(spec, open_codec(train, spec))
    model, _ = create_model_and_diffusion(config, sizes)  # reports options that do not fit before data are read
    use_device(train.device, several_processes=True)
    if train.dry_run:
        resources = estimate(config, sizes, dist_util.dev()).lines()
        print("\n".join([describe(config, spec, model), *(f"# {line}" for line in resources)]))
        return
    del model  # the training loop creates its own
    with StopRequest(train.max_hours) as stop:  # signals now stop the run after the current step
        dist_util.setup_dist()
        failed = True
        try:
            train_model(config, spec, stop)
            failed = False
        except torch.OutOfMemoryError as error:
            raise InputError(out_of_memory_message(train, spec.image_size)) from error
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            path = error.filename or train.run_dir
            raise InputError(f"{path}: {error.strerror}; fix this and run the same command to resume") from error
        finally:
            dist_util.cleanup(failed)


if __name__ == "__main__":
    run_cli(main)
