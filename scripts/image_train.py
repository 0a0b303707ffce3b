"""Trains CausalDiffAE.

    python scripts/image_train.py --config configs/morphomnist_causaldae_mini.yaml --data_dir DATA --run_dir RUN

Every field of the configuration is a flag (`--help` lists them). Run the same command again to go on after an
interruption.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from causaldiffae import dist_util
from causaldiffae.checkpoint import load_checkpoint
from causaldiffae.config import Config
from causaldiffae.errors import InputError
from causaldiffae.image_datasets import dataset_spec, read_split
from causaldiffae.logger import Logger
from causaldiffae.nn import count_parameters
from causaldiffae.script_util import create_model_and_diffusion, parse_config, run_cli
from causaldiffae.train_util import TrainLoop, checkpoint_to_resume


def describe(config: Config) -> str:
    """The resolved configuration as YAML, its digest, and the model's size."""
    spec = dataset_spec(config.train.dataset, config.train.image_size or None, config.train.channels or None)
    model, _ = create_model_and_diffusion(config, spec)
    lines = [yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(), f"# configuration {config.digest()}"]
    lines.append(
        f"# data set {spec.name}: {spec.channels}x{spec.image_size}x{spec.image_size}, graph {spec.graph.edges}"
    )
    for name, part in (("encoder", model.encoder), ("structural model", model.scm), ("U-Net", model.unet)):
        lines.append(f"# {name}: {count_parameters(part):,} parameters")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    config = parse_config(argv, __doc__ or "")
    train = config.train
    for name in ("dataset", "run_dir") if train.dry_run else ("dataset", "data_dir", "run_dir"):
        if not getattr(train, name):
            raise InputError(f"{name}: it is not given; --{name} or a configuration file must name it")
    text = describe(config)
    if train.dry_run:
        print(text)
        return
    dist_util.setup_dist()
    failed = True
    try:
        size, channels, limit = train.image_size or None, train.channels or None, train.num_images or None
        data = read_split(train.dataset, train.data_dir, "train", size, channels, limit)
        test = read_split(train.dataset, train.data_dir, "test", size, channels, limit=16)
        if dist_util.is_main():
            print(text, flush=True)
            Path(train.run_dir).mkdir(parents=True, exist_ok=True)
            Path(train.run_dir, "config.yaml").write_text(text + "\n", encoding="utf-8")
        dist_util.barrier()
        resumed = checkpoint_to_resume(train.resume_checkpoint, train.run_dir)
        resume_step = None if resumed is None else load_checkpoint(resumed).step
        logger = Logger(train.run_dir, train.tensorboard, resume_step)
        TrainLoop(config, data, logger, test).run()
        logger.close()
        failed = False
    finally:
        dist_util.cleanup(failed)


if __name__ == "__main__":
    run_cli(main)
