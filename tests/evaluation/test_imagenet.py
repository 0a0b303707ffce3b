"""Diff-SCM with published kinds of networks, in small: a DiT in an autoencoder's latent space, and an ADM in pixels."""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from running import Outcome, assert_refused, run
from tiny import randomise
from torch import nn

from causaldiffae.config import DiffusionConfig
from causaldiffae.datasets.images import to_model_range
from causaldiffae.dit import DiT
from causaldiffae.errors import DataError, InputError
from causaldiffae.evaluation.imagenet import (
    CLASS,
    class_names,
    find_class,
    imagenet_spec,
    load_imagenet_model,
    read_picture,
)
from causaldiffae.files.reading import StateDict
from causaldiffae.guidance import Guidance, guided_model_output
from causaldiffae.predictors.noised_predictor import NoisedPredictor, NoisedPredictorConfig, save_noised_predictor
from causaldiffae.published.autoencoder import LatentSpace, load_latent_space
from causaldiffae.published.guided_diffusion import AdmSizes, build_adm_classifier, build_adm_unet
from causaldiffae.unet import EncoderUNetModel, UNetModel

SCRIPT = REPO / "scripts" / "imagenet_diffscm_test.py"
TIGER = 292
SIZES = AdmSizes(image_size=16, num_res_blocks=1, channel_mult="1,2", attention_resolutions="8", num_head_channels=16)
SIZE_FLAGS = [f"--{name}={value}" for name, value in vars(SIZES).items()]
FEW = ("--steps", 4)


def calm(network: nn.Module, last: str, time: str, factor: float) -> nn.Module:
    """Less output, and no clock: a flow of random weights that a solver can follow there and back."""
    with torch.no_grad():
        for parameter in network.get_submodule(last).parameters():
            parameter.mul_(factor)
        network.get_submodule(time).weight.zero_()  # type: ignore[operator, union-attr]
    return network


def small_dit(**changes: int) -> DiT:
    torch.manual_seed(0)
    sizes = {"image_size": 8, "hidden_size": 32, "depth": 1, "num_heads": 2}
    return calm(randomise(DiT(**(sizes | changes))), "final_layer.linear", "t_embedder.mlp.2", 0.1).eval()  # type: ignore[arg-type, return-value]


def small_adm(**changes: int) -> UNetModel:
    torch.manual_seed(0)
    sizes = SIZES.arguments() | {"in_channels": 3, "model_channels": 32, "out_channels": 6}
    return calm(randomise(UNetModel(**(sizes | changes))), "out.2", "time_embed.2", 0.01).eval()  # type: ignore[arg-type, return-value]


def small_classifier(**changes: object) -> EncoderUNetModel:
    torch.manual_seed(1)
    sizes = SIZES.arguments() | {"in_channels": 3, "model_channels": 32, "out_channels": 1000, "pool": "attention"}
    return randomise(EncoderUNetModel(**(sizes | changes)), seed=1).eval()  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every small network as its publisher would store it, an autoencoder, and pictures."""
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
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 40 * 24 * 3).reshape(24, 40, 3).astype(np.uint8)
    Image.fromarray(ramp).save(root / "cat.jpg")
    Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(root / "grey.png")
    (root / "broken.jpg").write_bytes((root / "cat.jpg").read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae"))


def save_vae(folder: Path, **changes: object) -> Path:
    """A small autoencoder of diffusers that halves the resolution."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(2)
    sizes = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 16,
    }
    diffusers.AutoencoderKL(**(sizes | changes)).save_pretrained(folder)
    return folder


def ask_dit(files: Path, vae: Path, out: Path, *arguments: object, image: str = "cat.jpg") -> Outcome:
    model = ("--model_path", files / "dit.pt", "--num_heads", 2, "--vae_path", vae)
    return run(SCRIPT, *model, "--image", files / image, "--out_dir", out, *FEW, *arguments)


def ask_adm(files: Path, out: Path, *arguments: object) -> Outcome:
    model = ("--model_path", files / "adm.pt", "--predictor_path", files / "classifier.pt", *SIZE_FLAGS)
    return run(SCRIPT, *model, "--image", files / "cat.jpg", "--out_dir", out, *FEW, *arguments)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(np.int64)


# ---------------------------------------------------------------------- the script


def test_pictures_and_classes_through_a_transformer(files: Path, vae: Path, tmp_path: Path) -> None:
    done = ask_dit(files, vae, tmp_path, "--image", files / "grey.png", "--do", "tiger", "--do", "207", "--w", 300)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["classes"] == {"292": "tiger", "207": "golden retriever"}
    assert report["predictor"] == "implicit"
    assert (report["settings"]["w"], report["settings"]["stop"], report["settings"]["steps"]) == (300, 0.75, 4)
    columns = ["factual", "reconstruction", "do_292_tiger", "do_207_golden-retriever"]
    for i, name in enumerate(("cat", "grey")):
        entry = report["pictures"][i]
        assert list(entry["files"]) == columns
        assert entry["l1_to_factual"]["factual"] == 0
        shown = {column: pixels(tmp_path / f"{i}_{name}_{column}.png") for column in columns}
        assert all(image.shape == (16, 16, 3) for image in shown.values())
        for column, image in shown.items():
            error = np.abs(image - shown["factual"]).mean()
            assert entry["l1_to_factual"][column] == pytest.approx(error)
        assert not np.array_equal(shown["do_292_tiger"], shown["reconstruction"])
        assert not np.array_equal(shown["do_292_tiger"], shown["do_207_golden-retriever"])
    assert pixels(tmp_path / "counterfactuals.png").shape == (2 * 18 + 2, 4 * 18 + 2, 3)


def test_batches_change_nothing(files: Path, vae: Path, tmp_path: Path) -> None:
    for size in (1, 2):
        arguments = ("--image", files / "grey.png", "--do", "tiger", "--batch_size", size)
        assert ask_dit(files, vae, tmp_path / str(size), *arguments).returncode == 0
    one, two = (pixels(tmp_path / str(size) / "counterfactuals.png") for size in (1, 2))
    assert np.abs(one - two).max() <= 1


def test_a_pipeline_folder_brings_its_autoencoder(files: Path, vae: Path, tmp_path: Path) -> None:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=1, sample_size=8
    ).save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "vae").symlink_to(vae)
    arguments = ("--image", files / "cat.jpg", "--do", "tiger", "--out_dir", tmp_path / "out", *FEW)
    done = run(SCRIPT, "--model_path", tmp_path / "pipeline", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "0_cat_do_292_tiger.png").is_file()


def test_the_null_intervention_is_the_autoencoder_s_reconstruction(files: Path, vae: Path, tmp_path: Path) -> None:
    """Guidance of scale 0 gives the reconstruction, and with a good solver that is the autoencoder's own."""
    assert ask_dit(files, vae, tmp_path, "--do", "tiger", "--w", 0, "--steps", 40).returncode == 0
    factual, reconstruction, null = (
        pixels(tmp_path / f"0_cat_{name}.png") for name in ("factual", "reconstruction", "do_292_tiger")
    )
    np.testing.assert_array_equal(null, reconstruction)
    space = load_latent_space(vae)
    images = to_model_range(factual.transpose(2, 0, 1)[None].astype(np.uint8))
    own = ((space.decode(space.encode(images)).clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(reconstruction - own).max() <= 2


def test_a_short_way_changes_little(files: Path, vae: Path, tmp_path: Path) -> None:
    changes = {}
    for stop in (0.01, 0.75):
        assert ask_dit(files, vae, tmp_path / str(stop), "--do", "tiger", "--w", 20, "--stop", stop).returncode == 0
        shown = (pixels(tmp_path / str(stop) / f"0_cat_{name}.png") for name in ("reconstruction", "do_292_tiger"))
        changes[stop] = np.abs(np.subtract(*shown)).mean()
    assert 0 < changes[0.01] < 0.3 * changes[0.75]


def test_pixels_and_a_classifier(files: Path, tmp_path: Path) -> None:
    done = ask_adm(files, tmp_path, "--do", "tiger", "--do", "cougar", "--w", 3000)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["predictor"] == "explicit"
    shown = {name: pixels(tmp_path / f"0_cat_{name}.png") for name in report["pictures"][0]["files"]}
    assert len(shown) == 4
    assert not np.array_equal(shown["do_292_tiger"], shown["reconstruction"])
    assert not np.array_equal(shown["do_292_tiger"], shown["do_286_cougar"])


def test_pixels_come_back_without_guidance(files: Path, tmp_path: Path) -> None:
    assert ask_adm(files, tmp_path, "--do", "tiger", "--w", 0, "--steps", 10, "--stop", 0.3).returncode == 0
    factual, reconstruction, null = (
        pixels(tmp_path / f"0_cat_{name}.png") for name in ("factual", "reconstruction", "do_292_tiger")
    )
    np.testing.assert_array_equal(null, reconstruction)
    assert np.abs(reconstruction - factual).max() <= 2


# ---------------------------------------------------------------------- what is computed


def test_guidance_is_of_every_channel(files: Path, vae: Path) -> None:
    """eps(null) + w (eps(y) - eps(null)), in all four channels: the published sampler leaves the fourth out."""
    loaded = load_imagenet_model(str(files / "dit.pt"), str(vae), num_heads=2)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 700.0])
    z = torch.full((2, 1, 1), float(TIGER))
    network, y = loaded.model.network, torch.full((2,), TIGER)
    with torch.no_grad():
        guided = guided_model_output(loaded.model, z, guidance=Guidance(w=4.0), z_factual=torch.zeros(2, 1, 1))(x, t)
        null, conditional = network(x, t), network(x, t, y)
    torch.testing.assert_close(guided, null + 4.0 * (conditional - null), rtol=1e-4, atol=1e-4)
    assert all((conditional - null)[:, :4].abs().amax(dim=(0, 2, 3)) > 1e-4)


def test_the_classifier_s_gradient_guides(files: Path) -> None:
    """eps - w sqrt(1 - abar) grad log p(y | x_t), of guided-diffusion's own networks."""
    unet, classifier = small_adm(), small_classifier()
    loaded = load_imagenet_model(str(files / "adm.pt"), predictor_path=str(files / "classifier.pt"), sizes=SIZES)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([100, 700])
    z = torch.full((2, 1, 1), float(TIGER))
    guided = guided_model_output(loaded.model, z, guidance=Guidance(w=5.0), z_factual=torch.zeros(2, 1, 1))(
        x, t.float()
    )
    at = x.clone().requires_grad_()
    log_prob = torch.log_softmax(classifier(at, t), dim=1)[:, TIGER].sum()
    (gradient,) = torch.autograd.grad(log_prob, at)
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t.numpy()]
    noise = torch.tensor(np.sqrt(1 - abar), dtype=torch.float32).reshape(2, 1, 1, 1)
    wanted = unet(x, t)[:, :3] - 5.0 * noise * gradient
    torch.testing.assert_close(guided[:, :3], wanted, rtol=1e-4, atol=1e-4)


def test_one_abduction_serves_all_classes(files: Path, vae: Path) -> None:
    loaded = load_imagenet_model(str(files / "dit.pt"), str(vae), num_heads=2)
    engine = loaded.engine(steps=5, guidance=Guidance(w=4.0), stop=0.5)
    sizes: list[int] = []
    loaded.model.network.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    abducted = engine.abduct(images, labels=loaded.unknown_labels(2))
    assert sizes == [2] * 5
    answers = engine.predict(abducted, [{CLASS: 1.0}, {CLASS: 2.0}])
    assert sizes[5:] == [8] * 5  # both classes and both conditions in one batch
    assert answers[0].images.shape == (2, 3, 16, 16)
    assert abducted.x_T is not None
    assert abducted.x_T.shape == (2, 4, 8, 8)
    assert answers[1].labels.tolist() == [[2.0], [2.0]]


def test_latents_are_not_clipped(files: Path, vae: Path) -> None:
    loaded = load_imagenet_model(str(files / "dit.pt"), str(vae), num_heads=2)
    assert loaded.latent_space is not None
    loaded.latent_space.scale = 100.0  # codes far outside [-1, 1]
    engine = loaded.engine(steps=2, stop=0.01)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    codes = loaded.latent_space.encode(images)
    assert codes.abs().max() > 5
    back = engine.predict(engine.abduct(images, labels=loaded.unknown_labels(1)), [{}])[0].images
    torch.testing.assert_close(back, loaded.latent_space.decode(codes).clamp(-1, 1), rtol=0, atol=0.02)


# ---------------------------------------------------------------------- parts


def test_classes_by_name_and_index() -> None:
    assert len(class_names()) == 1000
    assert find_class("tiger") == find_class(" TIGER ") == find_class("292") == TIGER
    assert find_class("tiger_cat") == 282
    assert find_class("0") == 0
    for text, words in {
        "tigr": "'tigr' is no ImageNet class; near it are tiger (292)",
        "retriever": "near it are golden retriever (207)",
        "1000": "a name like 'tiger' is needed, or an index in 0..999",
        "-1": "or an index in 0..999",
        "\u00b2": "or an index in 0..999",
        "": "'' is no ImageNet class; a name like 'tiger'",
    }.items():
        with pytest.raises(InputError, match=re.escape(words)):
            find_class(text)


def test_pictures_of_any_size(tmp_path: Path) -> None:
    for size in ((300, 200), (16, 16), (5, 9), (17, 400)):
        Image.new("RGB", size, (200, 100, 0)).save(tmp_path / "picture.png")
        picture = read_picture(tmp_path / "picture.png", 16)
        assert picture.shape == (3, 16, 16)
        assert picture[:, 8, 8].tolist() == [200, 100, 0]
    halves = Image.new("RGB", (40, 20), "black")
    halves.paste((255, 255, 255), (20, 0, 40, 20))
    halves.save(tmp_path / "picture.png")
    picture = read_picture(tmp_path / "picture.png", 20)  # the centre: columns 10 to 30
    assert picture[0, 0].tolist() == [0] * 10 + [255] * 10
    halves.convert("RGBA").save(tmp_path / "picture.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "picture.png", 20), picture)


def test_adm_state_dicts_open() -> None:
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0, 900])
    saved = small_adm(num_classes=7, out_channels=3)
    opened = build_adm_unet(saved.state_dict(), SIZES)
    y = torch.tensor([0, 6])
    with torch.no_grad():
        torch.testing.assert_close(opened(x, t, y), saved(x, t, y), rtol=0, atol=0)
    for pool in ("attention", "adaptive"):
        classifier = small_classifier(pool=pool)
        predictor = build_adm_classifier(classifier.state_dict(), SIZES, imagenet_spec(16))
        with torch.no_grad():
            torch.testing.assert_close(predictor(x, t), classifier(x, t), rtol=0, atol=0)


def renamed(folder: Path, out: Path) -> Path:
    """The autoencoder with the attention's older names, as in the published folders."""
    from safetensors.torch import load_file, save_file

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state: StateDict = {}
    for key, value in load_file(folder / "diffusion_pytorch_model.safetensors").items():
        for new_name, old_name in old.items():
            key = key.replace(f".{new_name}.", f".{old_name}.")
        state[key] = value
    assert any(".proj_attn." in key for key in state)
    save_file(state, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def test_the_latent_space(vae: Path, tmp_path: Path) -> None:
    space = load_latent_space(vae)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = space.encode(images)
    assert (space.channels, space.downsampling, space.scale) == (4, 2, 0.18215)
    torch.testing.assert_close(codes, space.vae.encode(images).latent_dist.mean * 0.18215)
    torch.testing.assert_close(space.decode(codes), space.vae.decode(codes / 0.18215).sample)
    torch.testing.assert_close(load_latent_space(renamed(vae, tmp_path)).encode(images), codes)
    shifted = LatentSpace(space.vae)
    shifted.shift = 0.5
    torch.testing.assert_close(shifted.encode(images), codes - 0.5 * 0.18215)
    torch.testing.assert_close(shifted.decode(shifted.encode(images)), space.decode(codes), rtol=1e-4, atol=1e-5)


def test_other_autoencoders_are_refused(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(DataError, match=r"there is no config\.json; the folder of an AutoencoderKL"):
        load_latent_space(tmp_path)
    (tmp_path / "config.json").write_bytes((vae / "config.json").read_bytes())
    with pytest.raises(DataError, match="expected weights, diffusion_pytorch_model"):
        load_latent_space(tmp_path)
    state = load_file(vae / "diffusion_pytorch_model.safetensors")
    del state["quant_conv.bias"]
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"no AutoencoderKL, tensor quant_conv\.bias is missing"):
        load_latent_space(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="it cannot be opened as an AutoencoderKL"):
        load_latent_space(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(
        InputError, match=re.escape("vae_path: diffusers is not installed; pip install -e '.[imagenet]'")
    ):
        load_latent_space(vae)


# ---------------------------------------------------------------------- what is refused

Refusal = tuple[Callable[[Path, Path, Path], Outcome], tuple[str, ...]]


def dit(*arguments: object, image: str = "cat.jpg") -> Callable[[Path, Path, Path], Outcome]:
    return lambda files, vae, out: ask_dit(files, vae, out, *arguments, image=image)


def other(model: str, *arguments: str) -> Callable[[Path, Path, Path], Outcome]:
    """Another model; a predictor and pictures are named by their files."""

    def ask(files: Path, vae: Path, out: Path) -> Outcome:
        named = [str(files / text) if text.endswith(".pt") else text.replace("VAE", str(vae)) for text in arguments]
        common = ("--image", files / "cat.jpg", "--do", "tiger", "--out_dir", out, *FEW, *SIZE_FLAGS, *named)
        return run(SCRIPT, "--model_path", files / model, "--num_heads", 2, *common)

    return ask


REFUSED: dict[str, Refusal] = {
    "an unknown class": (dit("--do", "tigr"), ("'tigr'", "tiger (292)")),
    "no class": (dit(), ("do: expected a value, got none",)),
    "a scale that is not finite": (dit("--do", "tiger", "--w", ".nan"), ("w: nan given, a finite number",)),
    "an endless scale": (dit("--do", "tiger", "--w", "inf"), ('"w"', "inf")),
    "a scale that bursts": (dit("--do", "tiger", "--w", "1e30"), ("w: expected a scale", "got 1e+30")),
    "a broken picture": (dit("--do", "tiger", image="broken.jpg"), ("broken.jpg: it cannot be read",)),
    "a file that is no picture": (dit("--do", "tiger", image="dit.pt"), ("dit.pt: it cannot be read",)),
    "no picture": (dit("--do", "tiger", image="none.jpg"), ("none.jpg: it is missing",)),
    "a stop of nothing": (dit("--do", "tiger", "--stop", 0), ("stop: 0",)),
    "an unknown solver": (dit("--do", "tiger", "--solver", "euler"), ("solver: expected",)),
    "one step": (dit("--do", "tiger", "--steps", 1), ("steps: expected 2 or more, got 1",)),
    "no autoencoder": (other("dit.pt"), ("vae_path: not given",)),
    "a missing autoencoder": (other("dit.pt", "--vae_path", "/nowhere"), ("/nowhere: there is no config.json",)),
    "another label set": (other("dit10.pt", "--vae_path", "VAE"), ("dit10.pt knows 10 classes",)),
    "a classifier for a DiT": (
        other("dit.pt", "--vae_path", "VAE", "--predictor_path", "classifier.pt"),
        ("predictor_path: a DiT is its own predictor",),
    ),
    "an autoencoder for pixels": (other("adm.pt", "--vae_path", "VAE"), ("adm.pt works on pixels",)),
    "no classifier": (other("adm.pt"), ("predictor_path: not given",)),
    "a classifier of other classes": (
        other("adm.pt", "--predictor_path", "classifier10.pt"),
        ("classifier10.pt: expected 1000 classes, got 10",),
    ),
    "a U-Net as its classifier": (
        other("adm.pt", "--predictor_path", "adm.pt"),
        ("adm.pt: expected guided-diffusion's classifier",),
    ),
    "a classifier as its U-Net": (
        other("classifier.pt", "--predictor_path", "classifier.pt"),
        ("expected guided-diffusion's U-Net",),
    ),
    "a class-conditional U-Net": (
        other("adm_classes.pt", "--predictor_path", "classifier.pt"),
        ("the unconditional U-Net is needed",),
    ),
    "a U-Net of other sizes": (
        other("adm.pt", "--predictor_path", "classifier.pt", "--num_res_blocks", "2"),
        ("adm.pt: checkpoint of another model",),
    ),
    "a missing model": (other("none.pt"), ("none.pt: it is missing",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str, files: Path, vae: Path, tmp_path: Path) -> None:
    ask, words = REFUSED[name]
    done = ask(files, vae, tmp_path / "out")
    progress = [line for line in done.stderr.splitlines() if not line.startswith(("\r", "counterfactuals:"))]
    assert_refused(done._replace(stderr="\n".join(progress)), *words)
    assert not (tmp_path / "out").exists()


def test_codes_of_other_channels(files: Path, tmp_path: Path) -> None:
    wide = save_vae(tmp_path / "vae", latent_channels=3)
    assert_refused(ask_dit(files, wide, tmp_path / "out", "--do", "tiger"), "vae_path: codes of 3 channels", "needs 4")


@pytest.mark.parametrize(
    ("steps", "words"),
    [(500, "was trained for diffusion_steps 500, the model has 1000"), (1000, "")],
)
def test_a_predictor_of_our_own(steps: int, words: str, files: Path, tmp_path: Path) -> None:
    """A folder that the noised predictor's trainer wrote: it must be for the same schedule."""
    predictor = NoisedPredictor(imagenet_spec(16), NoisedPredictorConfig(channel_mult="1,2"))
    save_noised_predictor(tmp_path / "predictor", predictor, DiffusionConfig(diffusion_steps=steps), {})
    done = other("adm.pt", "--predictor_path", str(tmp_path / "predictor"))(files, tmp_path, tmp_path / "out")
    if words:
        assert_refused(done, words)
    else:
        assert done.returncode == 0, done.stderr


def test_a_classifier_of_another_size(files: Path) -> None:
    state = small_classifier().state_dict()
    with pytest.raises(InputError, match=r"expected a classifier of images 3x32 \(channels x pixels\), got 3x16"):
        build_adm_classifier(state, SIZES, imagenet_spec(32), "classifier.pt")
    assert math.isfinite(float(next(iter(state.values())).sum()))
