"""Golden figures of public reference implementations, and the program that compares with them."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from paths import SHARED, TESTS

from causaldiffae.errors import DataError
from causaldiffae.unet import UNetModel

FILES = sorted((SHARED / "golden").glob("*.npz"))
SLOW = ("morphometrics_a",)
"""Takes minutes on a busy machine; tests/generators/test_morphology.py reads it too."""
CONFIG: dict[str, Any] = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 1, "num_heads": 2}
CONFIG |= {"num_res_blocks": 1, "attention_resolutions": [2], "channel_mult": [1, 2]}


@pytest.mark.skipif(not FILES, reason="the golden figures are not beside this repository")
def test_every_network_and_the_diffusion_process_have_golden_figures() -> None:
    assert {"causaldiffae", "adm_unet", "adm_classifier", "dit", "diffusion"} <= {
        parity.read(str(path))[0]["kind"] for path in FILES
    }


@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else [], id=p.stem) for p in FILES]
)
def test_the_package_reproduces_golden_figures(path: Path) -> None:
    tolerance, lines = parity.check_file(str(path))
    assert lines and not [line for line in lines if not line.error <= tolerance]


# ---------------------------------------------------------------------- the program, on files written here


def unet_arrays() -> dict[str, Any]:
    """A golden file of the U-Net of this package, which must agree with itself."""
    network = UNetModel(**CONFIG)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    parity.load_rule_weights(network, shapes)
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((2, 1, 8, 8)).astype(np.float32), np.array([3, 700])
    with torch.no_grad():
        out = network(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    meta = {"kind": "adm_unet", "source": "here", "config": CONFIG, "state_dict": shapes}
    return {"meta": json.dumps(meta), "x": x, "t": t, "out": out}


def write(path: Path, arrays: dict[str, Any]) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("change", ["value", "nan", "shape"])
def test_figures_that_agree_pass_and_others_fail(
    change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, good = unet_arrays(), write(tmp_path / "good.npz", unet_arrays())
    assert parity.main([good]) == 0 and capsys.readouterr().out.startswith(f"{good}  out ")
    arrays["out"] = {
        "value": arrays["out"] + 0.1 * (np.arange(128) == 0).reshape(2, 1, 8, 8),
        "nan": np.full_like(arrays["out"], np.nan),
        "shape": arrays["out"][:1],
    }[change]
    assert parity.main([write(tmp_path / "bad.npz", arrays), good]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL (tolerance 0.0001)" in lines[0] and lines[1].endswith("ok")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (None, "expected a golden file, got FileNotFoundError"),
        (b"no archive at all", "expected a golden file"),
        ({"x": np.zeros(3)}, "expected a golden file, got KeyError"),
        ({"meta": "not json"}, "expected a golden file, got JSONDecodeError"),
        ({"meta": json.dumps({"kind": "vae"})}, "kind: expected one of causaldiffae, .*, got 'vae'"),
        (
            {"meta": json.dumps({"kind": "adm_unet", "config": CONFIG, "state_dict": {"time_embed.0.weight": [1, 2]}})},
            "state dict: expected the keys and shapes of the reference, got differences in",
        ),
    ],
)
def test_other_files_are_refused(arrays: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        write(path, arrays)
    with pytest.raises(DataError, match=message):
        parity.check_file(str(path))


@pytest.mark.parametrize(("arguments", "message"), [([], "error: usage: "), (["missing.npz"], "error: missing.npz: ")])
def test_refusals_are_one_line_with_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity.py", *arguments])
    with pytest.raises(SystemExit, match="^2$"):
        runpy.run_path(str(TESTS / "parity.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "seed", "expected"),
    [
        ("a.weight", 1_357_826_415, lambda rng: rng.standard_normal((3, 4)) / 2),
        ("b.weight", 3_730_951_820, lambda rng: 1 + 0.1 * rng.standard_normal((5,))),
        ("b.bias", 3_922_471_888, lambda rng: 0.1 * rng.standard_normal((5,))),
        ("bn.running_var", 1_489_906_875, lambda rng: (rng.standard_normal(6), 0.5 + rng.random(6))[1]),
    ],
)
def test_weights_follow_the_rule_of_the_golden_files(key: str, seed: int, expected: Any) -> None:
    weights = expected(np.random.default_rng(seed))
    state = parity.rule_weights({key: list(weights.shape), "bn.num_batches_tracked": []})
    assert list(state) == [key]
    np.testing.assert_allclose(state[key].numpy(), weights, rtol=1e-6)
