"""Distils a trained model into one that encodes and decodes images in a few steps.

    python scripts/distill.py --model_path RUN --data_dir DATA --run_dir STUDENT --few_steps 4
    python scripts/image_causaldae_test.py --model_path STUDENT --data_dir DATA --out_dir OUT

The student starts with the networks and weights of the model. Its score network is trained to give, in a few steps,
the counterfactuals that the model gives in more steps. All flags of image_train.py apply, with defaults for
distillation; those of the networks are set by the model. A Diff-SCM is distilled at the guidance scale
`--teacher_scale`. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
from typing import Any, Final

import image_train

from causaldiffae.checkpoints.model_folders import find_model
from causaldiffae.errors import InputError
from causaldiffae.script_util import LoadedModel, load_model, run_cli
from causaldiffae.solvers import CLEANEST, cleanest_level

DEFAULTS: Final = {
    "teacher_steps": 8,
    "total_steps": 2000,
    "batch_size": 16,
    "lr": 1e-4,
    "warmup_steps": 20,
    "lr_anneal_steps": 1000,
    "grad_clip": 1.0,
    "ema_rate": "0.999",
    "ema_warmup": True,
}
KEPT: Final = ("dataset", "graph", "image_size", "channels", "num_images", "label_predictor")
"""Training options of the model that distillation starts from."""
START_OF_TWO: Final = 1.0
"""log(a / sigma) at which a student of two steps starts to encode."""


def flags_of(loaded: LoadedModel, path: str, few_steps: str) -> dict[str, Any]:
    """Flags of image_train.py for distilling a model in the folder `path`.

    Raises:
        InputError: for a model that is distilled already.
    """
    config = loaded.config
    if config.diffusion.few_steps:
        raise InputError(f"model_path: expected a model that is not distilled, got {path} of few_steps")
    described = config.to_dict()
    networks = described["model"] | described["diffusion"] | described["loss"]
    kept = {name: described["train"][name] for name in KEPT}
    of_run = {
        "masking": False,
        "label_fraction": 1.0,
        "teacher_start": cleanest_level(loaded.spec.name, latent=loaded.codec is not None),
        "few_steps": few_steps,
        "few_step_start": START_OF_TWO if few_steps == "2" else CLEANEST,
        "init_weights": path,
    }
    return networks | kept | DEFAULTS | of_run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model_path")
    parser.add_argument("--few_steps", default="4")
    args, others = parser.parse_known_args(argv)
    if args.model_path is None:
        if {"-h", "--help"} & set(argv):
            print((__doc__ or "").strip(), end="\n\n")
            image_train.main(["--help"])
        raise InputError("model_path: expected the model to distil, got none")
    path = str(find_model(args.model_path))
    loaded = load_model(path)
    flags = flags_of(loaded, path, args.few_steps)
    if loaded.codec is not None:
        flags["vae_path"] = loaded.codec.folder
    image_train.main([*(f"--{name}={value}" for name, value in flags.items()), *others])


if __name__ == "__main__":
    run_cli(main)
