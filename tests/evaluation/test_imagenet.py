"""Diff-SCM with published kinds of networks, in small: a DiT in an autoencoder's latent space, and an ADM in pixels."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoders import save_vae
from paths import REPO
from PIL import Image
from running import Outcome, assert_refused, run
from tiny import randomise
from torch import nn

from causaldiffae.config import DiffusionConfig
from causaldiffae.datasets.images import to_model_range
from causaldiffae.dit import DiT
from causaldiffae.errors import InputError
from causaldiffae.evaluation.imagenet import (
    CLASS,
    ImagenetModel,
    class_names,
    find_class,
    imagenet_spec,
    load_imagenet_model,
    read_image,
)
from causaldiffae.guidance import Guidance, guided_model_output
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig, save_noised_predictor
from causaldiffae.published.autoencoder import load_latent_space
from causaldiffae.published.guided_diffusion import AdmSizes, build_adm_classifier
from causaldiffae.unet import EncoderUNetModel, UNetModel

SCRIPT = REPO / "scripts" / "imagenet_diffscm_test.py"
TIGER = 292
SIZES = AdmSizes(image_size=16, num_res_blocks=1, channel_mult="1,2", attention_resolutions="8", num_head_channels=16)
SIZE_FLAGS = [f"--{name}={value}" for name, value in vars(SIZES).items()]


def calm(network: nn.Module, last: str, time: str, factor: float) -> nn.Module:
    """Scales the output down and removes the dependence on t: a flow that few solver steps can invert."""
    with torch.no_grad():
        for parameter in network.get_submodule(last).parameters():
            parameter.mul_(factor)
        network.get_submodule(time).weight.zero_()  # type: ignore[operator, union-attr]
    return network.eval()


def small_dit(**changes: int) -> DiT:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2}
    return calm(randomise(DiT(**(sizes | changes))), "final_layer.linear", "t_embedder.mlp.2", 0.1)  # type: ignore[arg-type, return-value]


def small_adm(**changes: int) -> UNetModel:
    torch.manual_seed(0)
    sizes = SIZES.arguments() | {"in_channels": 3, "model_channels": 32, "out_channels": 6}
    return calm(randomise(UNetModel(**(sizes | changes))), "out.2", "time_embed.2", 0.01)  # type: ignore[arg-type, return-value]


def small_classifier(**changes: object) -> EncoderUNetModel:
    torch.manual_seed(1)
    sizes = SIZES.arguments() | {"in_channels": 3, "model_channels": 32, "out_channels": 1000, "pool": "attention"}
    return randomise(EncoderUNetModel(**(sizes | changes)), seed=1).eval()  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every small network as its publisher stores it, images, and in the folder vae an autoencoder."""
    root = tmp_path_factory.mktemp("imagenet")
    networks = {
        "dit": small_dit(),
        "dit10": small_dit(num_classes=10),
        "adm": small_adm(),
        "adm_classes": small_adm(num_classes=1000),
        "classifier": small_classifier(),
        "classifier10": small_classifier(out_channels=10),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), root / f"{name}.pt")
    ramp = np.linspace(0, 255, 40 * 24 * 3).reshape(24, 40, 3).astype(np.uint8)
    Image.fromarray(ramp).save(root / "cat.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20), dtype=np.uint8)).save(root / "grey.png")
    (root / "broken.jpg").write_bytes((root / "cat.jpg").read_bytes()[:200])
    save_vae(root / "vae")
    save_vae(root / "vae3", latent_channels=3)
    return root


DIT = ("--model_path={files}/dit.pt", "--num_heads=2", "--vae_path={files}/vae")
ADM = ("--model_path={files}/adm.pt", "--predictor_path={files}/classifier.pt", *SIZE_FLAGS)


def run_script(files: Path, out: Path, *flags: str, image: str = "cat.jpg") -> Outcome:
    named = [flag.format(files=files) for flag in flags]
    return run(SCRIPT, "--steps=4", f"--image={files / image}", f"--out_dir={out}", *named)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.int64)


def reconstructed(out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factual image, reconstruction and counterfactual tiger."""
    return tuple(pixels(out / f"0_cat_{name}.png") for name in ("factual", "reconstruction", "do_292_tiger"))  # type: ignore[return-value]


# ---------------------------------------------------------------------- the script


def test_images_and_classes_through_a_transformer(files: Path, tmp_path: Path) -> None:
    flags = ("--image={files}/grey.png", "--do=tiger", "--do=207", "--w=300")
    outcome = run_script(files, tmp_path, *DIT, *flags)
    assert outcome.returncode == 0, outcome.stderr
    assert str(tmp_path) in outcome.stdout
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["classes"] == {"292": "tiger", "207": "golden retriever"}
    assert report["predictor"] == "implicit"
    assert (report["settings"]["w"], report["settings"]["stop"], report["settings"]["steps"]) == (300, 0.75, 4)
    columns = ["factual", "reconstruction", "do_292_tiger", "do_207_golden-retriever"]
    for i, name in enumerate(("cat", "grey")):
        entry = report["pictures"][i]
        assert list(entry["files"]) == columns and entry["l1_to_factual"]["factual"] == 0
        images = {column: pixels(tmp_path / f"{i}_{name}_{column}.png") for column in columns}
        for column, image in images.items():
            assert image.shape == (16, 16, 3)
            assert entry["l1_to_factual"][column] == pytest.approx(np.abs(image - images["factual"]).mean())
        assert not np.array_equal(images["do_292_tiger"], images["reconstruction"])
        assert not np.array_equal(images["do_292_tiger"], images["do_207_golden-retriever"])
    grid = pixels(tmp_path / "counterfactuals.png")
    assert grid.shape == (2 * 18 + 2, 4 * 18 + 2, 3)
    assert run_script(files, tmp_path / "one", *DIT, *flags, "--batch_size=1").returncode == 0
    assert np.abs(pixels(tmp_path / "one" / "counterfactuals.png") - grid).max() <= 1, "whatever the batch size"


def test_a_pipeline_folder_brings_its_autoencoder(files: Path, tmp_path: Path) -> None:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=1, sample_size=8
    ).save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "vae").symlink_to(files / "vae")
    outcome = run_script(files, tmp_path / "out", f"--model_path={tmp_path / 'pipeline'}", "--do=tiger")
    assert outcome.returncode == 0, outcome.stderr
    assert (tmp_path / "out" / "0_cat_do_292_tiger.png").is_file()


def test_scale_0_gives_the_autoencoder_s_reconstruction(files: Path, tmp_path: Path) -> None:
    assert run_script(files, tmp_path, *DIT, "--do=tiger", "--w=0", "--steps=40").returncode == 0
    factual, reconstruction, null = reconstructed(tmp_path)
    np.testing.assert_array_equal(null, reconstruction)
    space = load_latent_space(files / "vae")
    images = to_model_range(factual.transpose(2, 0, 1)[None].astype(np.uint8))
    own = ((space.decode(space.encode(images)).clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(reconstruction - own).max() <= 2


def test_a_small_stop_changes_little(files: Path, tmp_path: Path) -> None:
    changes = {}
    for stop in (0.01, 0.75):
        out = tmp_path / str(stop)
        assert run_script(files, out, *DIT, "--do=tiger", "--w=20", f"--stop={stop}").returncode == 0
        _, reconstruction, counterfactual = reconstructed(out)
        changes[stop] = np.abs(reconstruction - counterfactual).mean()
    assert 0 < changes[0.01] < 0.3 * changes[0.75]


def test_pixels_and_a_classifier(files: Path, tmp_path: Path) -> None:
    outcome = run_script(files, tmp_path, *ADM, "--do=tiger", "--do=cougar", "--w=3000")
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["predictor"] == "explicit" and len(report["pictures"][0]["files"]) == 4
    _, reconstruction, tiger = reconstructed(tmp_path)
    assert not np.array_equal(tiger, reconstruction)
    assert not np.array_equal(tiger, pixels(tmp_path / "0_cat_do_286_cougar.png"))
    unguided = tmp_path / "unguided"
    assert run_script(files, unguided, *ADM, "--do=tiger", "--w=0", "--steps=10", "--stop=0.3").returncode == 0
    factual, reconstruction, null = reconstructed(unguided)
    np.testing.assert_array_equal(null, reconstruction)
    assert np.abs(reconstruction - factual).max() <= 2


# ---------------------------------------------------------------------- guidance and engine


def load_small_dit(files: Path) -> ImagenetModel:
    return load_imagenet_model(str(files / "dit.pt"), str(files / "vae"), num_heads=2)


def guided_output(loaded: ImagenetModel, w: float, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    z = torch.full((2, 1, 1), float(TIGER))
    return guided_model_output(loaded.model, z, guidance=Guidance(w=w), z_factual=torch.zeros(2, 1, 1))(x, t)


def test_guidance_acts_on_every_channel(files: Path) -> None:
    """eps(null) + w (eps(y) - eps(null)) in all four channels; the published sampler leaves out the fourth."""
    loaded = load_small_dit(files)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 700.0])
    with torch.no_grad():
        guided = guided_output(loaded, 4.0, x, t)
        null, conditional = loaded.model.network(x, t), loaded.model.network(x, t, torch.full((2,), TIGER))
    torch.testing.assert_close(guided, null + 4.0 * (conditional - null), rtol=1e-4, atol=1e-4)
    assert all((conditional - null)[:, :4].abs().amax(dim=(0, 2, 3)) > 1e-4)


def test_the_classifier_s_gradient_guides(files: Path) -> None:
    """eps - w sqrt(1 - abar) grad log p(y | x_t)."""
    loaded = load_imagenet_model(str(files / "adm.pt"), predictor_path=str(files / "classifier.pt"), sizes=SIZES)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100, 700])
    guided = guided_output(loaded, 5.0, x, t.float())
    at = x.clone().requires_grad_()
    log_prob = torch.log_softmax(small_classifier()(at, t), dim=1)[:, TIGER].sum()
    (gradient,) = torch.autograd.grad(log_prob, at)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.numpy()]
    noise = torch.tensor(np.sqrt(1 - abar), dtype=torch.float32).reshape(2, 1, 1, 1)
    expected = small_adm()(x, t)[:, :3] - 5.0 * noise * gradient
    torch.testing.assert_close(guided[:, :3], expected, rtol=1e-4, atol=1e-4)


def test_one_abduction_serves_all_classes(files: Path) -> None:
    loaded = load_small_dit(files)
    engine = loaded.engine(steps=5, guidance=Guidance(w=4.0), stop=0.5)
    sizes: list[int] = []
    loaded.model.network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    abducted = engine.abduct(torch.rand(2, 3, 16, 16) * 2 - 1, labels=loaded.unknown_labels(2))
    assert sizes == [2] * 5
    results = engine.predict(abducted, [{CLASS: 1.0}, {CLASS: 2.0}])
    assert sizes[5:] == [8] * 5, "two classes and two conditions in one batch"
    assert results[0].images.shape == (2, 3, 16, 16) and results[1].labels.tolist() == [[2.0], [2.0]]
    assert abducted.x_T is not None and abducted.x_T.shape == (2, 4, 8, 8)


def test_latents_are_not_clipped(files: Path) -> None:
    loaded = load_small_dit(files)
    assert loaded.latent_space is not None
    loaded.latent_space.scale = 100.0  # latents far outside [-1, 1]
    engine, images = loaded.engine(steps=2, stop=0.01), torch.rand(1, 3, 16, 16) * 2 - 1
    codes = loaded.latent_space.encode(images)
    assert codes.abs().max() > 5
    null = engine.predict(engine.abduct(images, labels=loaded.unknown_labels(1)), [{}])[0].images
    torch.testing.assert_close(null, loaded.latent_space.decode(codes).clamp(-1, 1), rtol=0, atol=0.02)


# ---------------------------------------------------------------------- classes and images


def test_classes_by_name_and_index() -> None:
    assert len(class_names()) == 1000
    assert find_class("tiger") == find_class(" TIGER ") == find_class("292") == TIGER
    assert find_class("tiger_cat") == 282 and find_class("0") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tigr", "do: expected an ImageNet class, like tiger (292)"),
        ("retriever", "like golden retriever (207)"),
        ("1000", "or an index in 0..999, got '1000'"),
        ("-1", "or an index in 0..999, got '-1'"),
        ("\u00b2", "or an index in 0..999"),
        ("", "like tiger (292), or an index in 0..999, got ''"),
    ],
)
def test_other_classes_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        find_class(text)


def test_images_are_resized_and_cropped(tmp_path: Path) -> None:
    halves = Image.new("RGB", (40, 20), "black")
    halves.paste((255, 255, 255), (20, 0, 40, 20))
    for mode in ("RGB", "RGBA"):
        halves.convert(mode).save(tmp_path / "image.png")
        image = read_image(tmp_path / "image.png", 20)
        assert image.shape == (3, 20, 20) and image[0, 0].tolist() == [0] * 10 + [255] * 10, "the centre"


# ---------------------------------------------------------------------- refusals

TIGER_DIT, TIGER_ADM = (*DIT, "--do=tiger"), (*ADM, "--do=tiger")
REFUSED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "an unknown class": ((*DIT, "--do=tigr"), ("'tigr'", "tiger (292)")),
    "no class": (DIT, ("do: expected a value, got none",)),
    "a scale that is NaN": ((*TIGER_DIT, "--w=.nan"), ("w", "nan", "finite")),
    "an infinite scale": ((*TIGER_DIT, "--w=inf"), ('"w"', "inf")),
    "a scale that overflows": ((*TIGER_DIT, "--w=1e30"), ("w: expected a scale", "got 1e+30")),
    "a truncated image": ((*TIGER_DIT, "--image={files}/broken.jpg"), ("broken.jpg",)),
    "a file that is no image": ((*TIGER_DIT, "--image={files}/dit.pt"), ("dit.pt",)),
    "a missing image": ((*TIGER_DIT, "--image={files}/none.jpg"), ("none.jpg",)),
    "a stop of 0": ((*TIGER_DIT, "--stop=0"), ("stop", "0")),
    "an unknown solver": ((*TIGER_DIT, "--solver=euler"), ("solver", "'euler'")),
    "one step": ((*TIGER_DIT, "--steps=1"), ("steps: expected 2 or more, got 1",)),
    "no autoencoder": ((*TIGER_DIT, "--vae_path="), ("vae_path: expected the folder", "got none")),
    "a missing autoencoder": ((*TIGER_DIT, "--vae_path=/nowhere"), ("/nowhere", "config.json")),
    "other channels": ((*TIGER_DIT, "--vae_path={files}/vae3"), ("vae_path: expected", "got 3")),
    "other classes": ((*TIGER_DIT, "--model_path={files}/dit10.pt"), ("expected 1000 classes, got 10", "dit10.pt")),
    "a DiT's classifier": ((*TIGER_DIT, "--predictor_path={files}/adm.pt"), ("predictor_path: expected none",)),
    "a U-Net's autoencoder": ((*TIGER_ADM, "--vae_path={files}/vae"), ("vae_path", "for the pixel-space model")),
    "no classifier": ((*TIGER_ADM, "--predictor_path="), ("predictor_path: expected a noised classifier",)),
    "few classes": ((*TIGER_ADM, "--predictor_path={files}/classifier10.pt"), ("classifier10.pt", "1000", "10")),
    "a U-Net as classifier": ((*TIGER_ADM, "--predictor_path={files}/adm.pt"), ("adm.pt",)),
    "a classifier as U-Net": ((*TIGER_ADM, "--model_path={files}/classifier.pt"), ("classifier.pt",)),
    "classes": ((*TIGER_ADM, "--model_path={files}/adm_classes.pt"), ("expected the unconditional", "adm_classes")),
    "other sizes": ((*TIGER_ADM, "--num_res_blocks=2"), ("adm.pt",)),
    "a missing model": ((*TIGER_ADM, "--model_path={files}/none.pt"), ("none.pt",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, files: Path, tmp_path: Path) -> None:
    flags, words = REFUSED[name]
    outcome = run_script(files, tmp_path / "out", *flags)
    messages = [line for line in outcome.stderr.splitlines() if not line.startswith(("\r", "counterfactuals:"))]
    assert_refused(outcome._replace(stderr="\n".join(messages)), *words)
    assert not (tmp_path / "out").exists()


def test_a_noised_predictor_must_have_the_same_schedule(files: Path, tmp_path: Path) -> None:
    predictor = NoisedPredictor(imagenet_spec(16), NoisedPredictorConfig(channel_mult="1,2"))
    for steps in (500, 1000):
        folder = tmp_path / str(steps)
        save_noised_predictor(folder, predictor, DiffusionConfig(diffusion_steps=steps), {})
        outcome = run_script(files, tmp_path / "out", *TIGER_ADM, f"--predictor_path={folder}")
        if steps == 500:
            assert_refused(outcome, "diffusion_steps", "500", "1000")
        else:
            assert outcome.returncode == 0, outcome.stderr


def test_a_classifier_must_have_the_image_size() -> None:
    with pytest.raises(InputError, match="classifier.pt.*3x16.*3x32|classifier.pt.*3x32.*3x16"):
        build_adm_classifier(small_classifier().state_dict(), SIZES, imagenet_spec(32), "classifier.pt")
