"""Distils a trained model into one that encodes and decodes images in a few steps.

    python scripts/distill.py --model_path RUN --data_dir DATA --run_dir STUDENT --few_steps 4
    python scripts/image_causaldae_test.py --model_path STUDENT --data_dir DATA --out_dir OUT

The student starts with the networks and weights of the model; only its score network is trained. All flags of
image_train.py apply, with defaults for distillation; those of the networks are set by the model. A Diff-SCM is
distilled at the guidance scale `--teacher_scale`. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

import image_train

from causaldiffae.checkpoints.model_folders import find_model
from causaldiffae.config import Config
from causaldiffae.errors import InputError
from causaldiffae.script_util import load_model, run_cli

DEFAULTS: Final = {
    "few_steps": 4,
    "teacher_steps": 13,
    "total_steps": 20000,
    "batch_size": 32,
    "lr": 5e-4,
    "warmup_steps": 200,
    "lr_anneal_steps": 12000,
    "grad_clip": 1.0,
    "ema_rate": "0.999",
    "ema_warmup": True,
}
KEPT: Final = ("dataset", "image_size", "channels", "num_images", "label_predictor")
"""Training options of the model that distillation starts from."""


def flags_of(config: Config, path: str) -> dict[str, Any]:
    """Flags of image_train.py for distilling a model of a configuration; `path` is its folder.

    Raises:
        InputError: for a model that is distilled already.
    """
    if config.diffusion.few_steps:
        raise InputError(f"model_path: expected a model that is not distilled, got {path} of few_steps")
    described = config.to_dict()
    networks = described["model"] | described["diffusion"] | described["loss"]
    kept = {name: described["train"][name] for name in KEPT}
    return networks | kept | {"masking": False} | DEFAULTS | {"init_weights": path}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model_path")
    args, others = parser.parse_known_args(argv)
    if args.model_path is None:
        if {"-h", "--help"} & set(argv):
            print((__doc__ or "").strip(), end="\n\n")
            image_train.main(["--help"])
        raise InputError("model_path: expected the model to distil, got none")
    path = str(find_model(args.model_path))
    loaded = load_model(path)
    flags = flags_of(loaded.config, path)
    if loaded.codec is not None:
        flags["vae_path"] = loaded.codec.folder
    image_train.main([*(f"--{name}={value}" for name, value in flags.items()), *others])


if __name__ == "__main__":
    run_cli(main)
