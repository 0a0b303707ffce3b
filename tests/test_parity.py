"""The checker of golden figures, on the published ones where they lie beside the repository and on files made here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import parity
import pytest
import torch
from paths import REPO

from causaldiffae.errors import DataError
from causaldiffae.unet import UNetModel

GOLDEN = REPO.parent / "shared" / "golden"
CONFIG = {
    "image_size": 8,
    "in_channels": 1,
    "model_channels": 32,
    "out_channels": 1,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
}


def known_files() -> list[Path]:
    """Golden files of a kind that is checked."""
    found = []
    for path in sorted(GOLDEN.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            kind = json.loads(str(file["meta"]))["kind"]
        if kind in parity.CHECKS:
            found.append(path)
    return found


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden figures do not lie beside this repository")
def test_there_are_golden_files() -> None:
    kinds = {parity.read(str(path))[0]["kind"] for path in known_files()}
    assert {"causaldiffae", "adm_unet", "adm_classifier", "dit", "diffusion"} <= kinds


SLOW = ("morphometrics_a",)  # minutes on a busy machine, and test_morphology.py reads it too


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else [], id=p.stem) for p in known_files()],
)
def test_golden(path: Path) -> None:
    tolerance = parity.TOLERANCES[parity.read(str(path))[0]["kind"]]
    lines = parity.check_file(str(path))
    assert lines
    assert not [line for line in lines if not line.error <= tolerance]


# ---------------------------------------------------------------------- files made here


def golden_unet() -> dict[str, Any]:
    """A golden file of this package's own U-Net: what it says must agree with itself."""
    network = UNetModel(**CONFIG)  # type: ignore[arg-type]
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


def test_a_file_made_here_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "own.npz", golden_unet())
    assert parity.main([path]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert f"{path}  out" in out
    assert out.endswith("ok\n")


def test_a_perturbed_copy_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = golden_unet()
    arrays["out"][0, 0, 0, 0] += 0.1
    good, bad = write(tmp_path / "good.npz", golden_unet()), write(tmp_path / "bad.npz", arrays)
    assert parity.main([bad, good]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL (tolerance 0.0001)" in lines[0]
    assert lines[1].endswith("ok")


def test_nan_and_another_shape_fail(tmp_path: Path) -> None:
    for name, change in (("nan", lambda out: np.full_like(out, np.nan)), ("shape", lambda out: out[:1])):
        arrays = golden_unet()
        arrays["out"] = change(arrays["out"])
        assert parity.main([write(tmp_path / f"{name}.npz", arrays)]) == 1


def test_rubbish_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rubbish = tmp_path / "rubbish.npz"
    rubbish.write_bytes(b"no archive at all")
    files = {
        str(rubbish): "no golden file",
        str(tmp_path / "missing.npz"): "no golden file",
        write(tmp_path / "bare.npz", {"x": np.zeros(3)}): "no golden file",
        write(tmp_path / "kind.npz", {"meta": json.dumps({"kind": "vae"})}): "kind 'vae' is unknown",
        write(tmp_path / "text.npz", {"meta": "not json"}): "no golden file",
    }
    other = golden_unet()
    meta = json.loads(other["meta"])
    meta["state_dict"]["time_embed.0.weight"] = [1, 2]
    files[write(tmp_path / "shapes.npz", other | {"meta": json.dumps(meta)})] = "keys or shapes differ"
    for path, message in files.items():
        assert parity.main([path]) == 2, path
        assert message in capsys.readouterr().err
    assert parity.main([]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_command_line_hands_the_code_on(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.npz"
    rubbish.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, str(REPO / "tests" / "parity.py"), str(rubbish)],
        env={"PYTHONPATH": str(REPO), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_weight_rule() -> None:
    shapes = {"a.weight": [3, 4], "b.weight": [5], "b.bias": [5], "bn.running_var": [6], "bn.num_batches_tracked": []}
    state = parity.rule_weights(shapes)
    assert set(state) == set(shapes) - {"bn.num_batches_tracked"}
    import zlib

    rng = np.random.default_rng(zlib.crc32(b"a.weight"))
    np.testing.assert_allclose(state["a.weight"].numpy(), rng.standard_normal((3, 4)) / 2, rtol=1e-6)
    rng = np.random.default_rng(zlib.crc32(b"b.weight"))
    np.testing.assert_allclose(state["b.weight"].numpy(), 1 + 0.1 * rng.standard_normal(5), rtol=1e-6)
    rng = np.random.default_rng(zlib.crc32(b"bn.running_var"))
    rng.standard_normal(6)
    np.testing.assert_allclose(state["bn.running_var"].numpy(), 0.5 + rng.random(6), rtol=1e-6)


def test_keys_must_be_the_reference_s() -> None:
    with pytest.raises(DataError, match="state dict: keys or shapes differ, for instance"):
        parity.load_rule_weights(torch.nn.Linear(2, 2), {"weight": [2, 2]})
