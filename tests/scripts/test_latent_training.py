"""Training on larger images in the latent space of an autoencoder, from the files to counterfactuals."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import save_tiny, save_vae
from fake_storage import install_service
from folders import make_folder
from paths import REPO
from running import Outcome, assert_refused, run

from causaldiffae import CounterfactualModel
from causaldiffae.checkpoints.remote import run_folder
from causaldiffae.datasets.registry import read_split
from causaldiffae.errors import DataError
from causaldiffae.evaluation.sampling import draw_abduction
from causaldiffae.files.reading import read_json

SIZES = ["--image_size=16", "--channel_mult=1", "--attention_resolutions=", "--num_channels=32", "--encoder_channels=8"]
QUICK = ["--batch_size=4", "--use_bf16=False", "--compile=False", "--tensorboard=False", "--sample_interval=100"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data")


def train(data: Path, run_dir: Path | str, vae: Path | str, *more: str, model: str = "causaldae") -> Outcome:
    configs = [REPO / "configs" / "folder_causaldae_latent.yaml"]
    if model != "causaldae":
        configs.append(REPO / "configs" / "baselines" / f"{model}.yaml")
    return run(
        REPO / "scripts" / "image_train.py",
        *(f"--config={config}" for config in configs),
        *(*SIZES, *QUICK, "--total_steps=2", "--vae_path", vae, "--data_dir", data, "--run_dir", run_dir, *more),
    )


def parts(run_dir: Path) -> list[str]:
    """Steps in a run directory."""
    return sorted(path.name for path in run_dir.glob("*step_*"))


@pytest.mark.parametrize("layout", ["AutoencoderTiny", "AutoencoderKL"])
def test_from_images_to_counterfactuals(data: Path, tmp_path: Path, layout: str) -> None:
    vae = (save_tiny if layout == "AutoencoderTiny" else save_vae)(tmp_path / "vae")
    trained = train(data, tmp_path / "run", vae)
    assert trained.returncode == 0, trained.stderr
    described = read_json(tmp_path / "run" / "step_0000002" / "config.json")
    assert {"channels": 4, "downsampling": 2}.items() <= described["autoencoder"].items()
    assert (described["dataset"]["image_size"], described["dataset"]["channels"]) == (16, 3)
    shutil.rmtree(vae)  # the run has its own copy

    model = CounterfactualModel.from_pretrained(tmp_path / "run", steps=2)
    assert model.network.unet.in_channels == 4 and model.network.encoder.encoder[0][0].in_channels == 4
    images = read_split("folder", data, "test", spec=model.spec)
    found = model.counterfactual(images, do={"age": 60.0})
    assert found.images.shape == (4, 3, 16, 16) and found.images.dtype == np.uint8
    assert model.encode(images).x_T is not None and model.encode(images).x_T.shape == (4, 4, 8, 8)  # type: ignore[union-attr]
    assert model.sample(2).images.shape == (2, 3, 16, 16)
    encoded = model.encode(images)
    np.testing.assert_array_equal(model.decode(encoded).images, images.images)
    with torch.inference_mode():
        drawn = draw_abduction(model.engine(), encoded, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(model.decode(drawn).images, images.images)

    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "run")
    again = CounterfactualModel.from_pretrained(tmp_path / "saved", steps=2).counterfactual(images, do={"age": 60.0})
    np.testing.assert_array_equal(again.images, found.images)


@pytest.mark.parametrize("model", ["conditional", "diffscm", "diffae"])
def test_other_models_and_their_test_scripts(data: Path, tmp_path: Path, model: str) -> None:
    trained = train(data, tmp_path / "run", save_tiny(tmp_path / "tiny"), model=model)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "autoencoder" / "config.json").is_file()
    script = REPO / "scripts" / f"image_{model}_test.py"
    given = ["--model_path", tmp_path / "run", "--data_dir", data, "--out_dir", tmp_path / "out"]
    tested = run(script, *given, "--do", "age=60", "--steps=2", "--num_images=2", "--use_bf16=False")
    assert tested.returncode == 0, tested.stderr
    assert (tmp_path / "out" / "counterfactuals.csv").is_file()


def test_a_remote_run_is_used_on_another_machine(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_service(tmp_path, monkeypatch)
    url, vae = "gs://bucket/run", save_tiny(tmp_path / "vae")
    trained = train(data, url, vae)
    assert trained.returncode == 0, trained.stderr
    shutil.rmtree(vae)
    shutil.rmtree(run_folder(url))
    assert CounterfactualModel.from_pretrained(url).loaded.codec is not None
    exported = run(REPO / "scripts" / "export_weights.py", "--model_path", url, "--out", tmp_path / "model")
    assert exported.returncode == 0, exported.stderr
    assert CounterfactualModel.from_pretrained(tmp_path / "model").loaded.codec is not None


def test_a_run_resumes_with_its_own_autoencoder_only(data: Path, tmp_path: Path) -> None:
    tiny, other, run_dir = save_tiny(tmp_path / "tiny"), save_tiny(tmp_path / "other", seed=4), tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "progress.csv").write_text("step,mse\n40,1.0\n")  # of a run that ended before its first checkpoint
    assert train(data, run_dir, tiny).returncode == 0
    assert "\n40," not in (run_dir / "progress.csv").read_text()
    assert_refused(train(data, run_dir, other, "--total_steps=3"), "vae_path", "another one")
    shutil.rmtree(run_dir / "autoencoder")
    assert_refused(train(data, run_dir, "", "--total_steps=3"), "vae_path: expected an autoencoder as for")
    shutil.rmtree(run_dir / "autoencoder", ignore_errors=True)
    assert_refused(train(data, tmp_path / "new", other, f"--resume_checkpoint={run_dir}/step_0000002"), "SHA-256")
    resumed = train(data, run_dir, tiny, "--total_steps=3")
    assert resumed.returncode == 0 and "resuming from step 2" in resumed.stderr
    started = train(data, tmp_path / "tuned", tiny, f"--init_weights={run_dir}")
    assert started.returncode == 0, started.stderr
    assert_refused(train(data, tmp_path / "wrong", other, f"--init_weights={run_dir}"), "vae_path", "SHA-256")


def test_bad_input_is_one_line_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    grey = save_tiny(tmp_path / "grey", channels=1)
    assert_refused(train(data, run_dir, grey), "vae_path: expected an autoencoder", "3 channels, got one of 1")
    assert_refused(train(data, run_dir, tmp_path / "nowhere"), "nowhere", "config.json")
    tiny = save_tiny(tmp_path / "tiny")
    assert_refused(train(data, run_dir, tiny, "--image_size=15"), "image_size: expected a multiple of 2")
    assert_refused(train(data, run_dir, tiny, model="causalvae"), "vae_path: expected a diffusion model")
    weights = tiny / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    assert_refused(train(data, run_dir, tiny), weights.name)
    weights.unlink()
    assert_refused(train(data, run_dir, tiny), "expected weights")
    assert not run_dir.exists() and not list((data / ".cache").glob("codes-*"))


def test_a_model_without_its_autoencoder_says_which_one_it_needs(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(data, run_dir, save_tiny(tmp_path / "tiny")).returncode == 0
    shutil.rmtree(tmp_path / "tiny")
    weights = run_dir / "autoencoder" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DataError, match=r"SHA-256 .* got another one in .*run/autoencoder"):
        CounterfactualModel.from_pretrained(run_dir)
    shutil.rmtree(run_dir / "autoencoder")
    with pytest.raises(DataError, match=r"got none; put its config.json and weights into .*run/autoencoder"):
        CounterfactualModel.from_pretrained(run_dir)


def test_a_dry_run_and_an_export(data: Path, tmp_path: Path) -> None:
    tiny, run_dir = save_tiny(tmp_path / "tiny"), tmp_path / "run"
    printed = train(data, run_dir, tiny, "--dry_run=True")
    assert printed.returncode == 0 and "images/s" in printed.stdout and not run_dir.exists()
    assert train(data, run_dir, tiny).returncode == 0
    exported = run(REPO / "scripts" / "export_weights.py", "--model_path", run_dir, "--out", tmp_path / "export")
    assert exported.returncode == 0, exported.stderr
    shutil.rmtree(run_dir)
    shutil.rmtree(tiny)
    assert CounterfactualModel.from_pretrained(tmp_path / "export").spec.image_size == 16


def test_a_model_is_distilled_in_its_latent_space(data: Path, tmp_path: Path) -> None:
    run_dir, student = tmp_path / "run", tmp_path / "student"
    assert train(data, run_dir, save_tiny(tmp_path / "tiny")).returncode == 0
    steps = ["--total_steps=1", "--batch_size=4", "--use_bf16=False", "--compile=False", "--tensorboard=False"]
    given = ["--model_path", run_dir, "--data_dir", data, "--run_dir", student, *steps]
    distilled = run(REPO / "scripts" / "distill.py", *given)
    assert distilled.returncode == 0, distilled.stderr
    assert (student / "autoencoder" / "config.json").is_file()
    assert CounterfactualModel.from_pretrained(student).spec.image_size == 16
