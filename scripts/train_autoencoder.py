"""Trains a small autoencoder on the images of a data set, in whose latent space a model of larger images is trained.

    python scripts/train_autoencoder.py --data_dir my_images --image_size 128 --out my_autoencoder
    python scripts/image_train.py --config configs/folder_causaldae_latent.yaml --data_dir my_images \\
        --vae_path my_autoencoder --run_dir RUN

Prints the error of reconstructions of test images, which is that of all that changes in a counterfactual. The folder
has the layout of diffusers' AutoencoderTiny. The launchers run both commands with SIZE=latent.
"""

from causaldiffae.script_util import parse_flags, run_cli
from causaldiffae.training.autoencoder import AutoencoderSettings, run_training


def main(argv: list[str]) -> None:
    print(run_training(parse_flags(AutoencoderSettings, argv, __doc__ or "")))


if __name__ == "__main__":
    run_cli(main)
