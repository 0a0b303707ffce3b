"""Trains CausalDiffAE, or a model it is compared with.

    python scripts/image_train.py --config configs/morphomnist_causaldae_mini.yaml --data_dir DATA --run_dir RUN
    python scripts/image_train.py ... --masking True --label_fraction 0.1      # a tenth of the images have labels
    python scripts/image_train.py ... --config configs/baselines/diffae.yaml             # another model, the same data
    python scripts/image_train.py ... --recipe reference                       # as the published code does it

Every field of the configuration is a flag (`--help` lists them); what is named later wins. Run the same command again
to go on after an interruption.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from causaldiffae import dist_util
from causaldiffae.checkpoint import load_checkpoint
from causaldiffae.config import Config, TrainConfig
from causaldiffae.errors import InputError
from causaldiffae.image_datasets import DatasetSpec, ImageData, dataset_spec, read_split
from causaldiffae.logger import Logger
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, parse_config, run_cli
from causaldiffae.supervision import with_labels_of
from causaldiffae.train_util import TrainLoop, checkpoint_to_resume


def find_spec(train: TrainConfig) -> DatasetSpec:
    """What is known about the configured data."""
    size, channels = train.image_size or None, train.channels or None
    return dataset_spec(train.dataset, size, channels, data_dir=train.data_dir or None, graph=train.graph or None)


def describe(config: Config, spec: DatasetSpec) -> str:
    """The resolved configuration as YAML, its digest, and the model's size."""
    model, _ = create_model_and_diffusion(config, spec)
    lines = [yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(), f"# configuration {config.digest()}"]
    lines.append(
        f"# data set {spec.name}: {spec.channels}x{spec.image_size}x{spec.image_size}, graph {spec.graph.edges}"
    )
    lines += [f"# {name}: {count_parameters(part):,} parameters" for name, part in model.named_children()]
    return "\n".join(lines)


def mask_labels(config: Config, data: ImageData) -> ImageData:
    """The data with labels on the configured share; one process lists them beside the data, the others read it."""
    fraction, seed, folder = config.loss.label_fraction, config.loss.label_seed, config.train.data_dir
    if dist_util.is_main():
        with_labels_of(data, fraction, seed, folder)
    dist_util.barrier()
    return with_labels_of(data, fraction, seed, folder, write=False)


def main(argv: list[str]) -> None:
    config = parse_config(argv, __doc__ or "")
    train = config.train
    for name in ("dataset", "run_dir") if train.dry_run else ("dataset", "data_dir", "run_dir"):
        if not getattr(train, name):
            raise InputError(f"{name}: it is not given; --{name} or a configuration file must name it")
    spec = find_spec(train)
    text = describe(config, spec)
    if train.dry_run:
        print(text)
        return
    dist_util.setup_dist()
    failed = True
    try:
        data = read_split(train.dataset, train.data_dir, "train", limit=train.num_images or None, spec=spec)
        test = read_split(train.dataset, train.data_dir, "test", limit=16, spec=spec)
        if config.loss.masking:
            data = mask_labels(config, data)
        resumed = checkpoint_to_resume(train.resume_checkpoint, train.run_dir)
        resume_step = None if resumed is None else load_checkpoint(resumed).step
        logger = Logger(train.run_dir, train.tensorboard, resume_step)
        loop = TrainLoop(config, data, logger, test)
        if dist_util.is_main():
            print(text, flush=True)
            Path(train.run_dir, "config.yaml").write_text(text + "\n", encoding="utf-8")
        loop.run()
        logger.close()
        failed = False
    finally:
        dist_util.cleanup(failed)


if __name__ == "__main__":
    run_cli(main)
