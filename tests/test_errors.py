"""Messages are one short line, whatever text they quote."""

import pickle
import warnings
from pathlib import Path

import pytest
from paths import REPO
from running import assert_refused, run

from causaldiffae.errors import MAX_MESSAGE, DataError, InputError, check_local
from causaldiffae.script_util import run_cli


def test_a_message_is_one_short_line() -> None:
    assert str(InputError("Größe ✓: 'a  b' is wrong")) == "Größe ✓: 'a  b' is wrong"
    assert str(DataError("a\nb\r\tc\x07\u2028\ud800")) == "a b  c???"
    long = str(DataError("x" * 10**6 + ", got 3"))
    assert len(long) <= MAX_MESSAGE and long.startswith("xxx") and long.endswith("xxx, got 3")
    assert str(InputError()) == "" and str(pickle.loads(pickle.dumps(DataError("a")))) == "a"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        warnings.warn("w\x1b]0;x\x07", UserWarning, stacklevel=1)
        raise DataError("a\x1b[2J\n\u202eb")

    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("always")
        run_cli(main, [])
    assert capsys.readouterr().err == "warning: w?]0;x?\nerror: a?[2J ?b\n"


def test_outputs_are_local() -> None:
    """`Path("gs://bucket/out")` is a folder `gs:` in the working directory."""
    check_local(out="out", report=None, json="", folder=Path("a:b/c"), table="C:/out", other="/gs:/out")
    for given in ("gs://bucket/out", Path("gs://bucket/out"), "gs:/bucket/out"):
        with pytest.raises(InputError, match="^json: expected a local path, got gs://bucket/out$"):
            check_local(out="out", json=given)
    with pytest.raises(InputError, match="^out: expected a local path, got s3://bucket/out$"):
        check_local(out=Path("s3://bucket/out"))


URL = "gs://bucket/out"
TESTED = ("--model_path=run", "--data_dir=data", f"--out_dir={URL}")
WITH_REMOTE_OUTPUT: dict[str, tuple[str, ...]] = {
    "classifiers/class_autoencoders.py": ("--data_dir=data", f"--out={URL}"),
    "classifiers/folder_classifier.py": ("--data_dir=data", f"--out={URL}"),
    "classifiers/noised_classifier.py": ("--dataset=mnist", "--data_dir=data", f"--out={URL}"),
    "scripts/train_autoencoder.py": ("--data_dir=data", f"--out={URL}"),
    "scripts/image_causaldae_test.py": TESTED,
    "scripts/imagenet_diffscm_test.py": ("--model_path=model", "--image=cat.jpg", "--do=tiger", f"--out_dir={URL}"),
    "scripts/sweep_scale.py": TESTED,
    "scripts/sweep_steps.py": TESTED,
    "scripts/demo.py": (f"--out={URL}",),
    "scripts/plot_run.py": (str(REPO / "weights" / "pendulum_causaldae_mini"), f"--out={URL}"),
    "scripts/export_weights.py": ("--model_path", str(REPO / "weights" / "pendulum_causaldae_mini"), f"--out={URL}"),
    "scripts/reproduce.py": (f"--out={URL}", "--dry_run=True"),
    "scripts/benchmark.py": (f"--json={URL}",),
    "scripts/gpu_check.py": (f"--json={URL}",),
    "scripts/estimate.py": ("--dataset=pendulum", "--size=mini", f"--table={URL}"),
}
EVALUATED = ("--model_path=run", "--data_dir=data")
OUTPUTS_OF_EVALUATION = (
    (*EVALUATED, f"--out={URL}/r.json"),
    (*EVALUATED, "--out=r.json", f"--report={URL}"),
    ("--dataset=mnist", "--data_dir=data", f"--export_questions={URL}"),
)


@pytest.mark.parametrize(
    ("script", "given"),
    [*WITH_REMOTE_OUTPUT.items(), *(("scripts/evaluate.py", given) for given in OUTPUTS_OF_EVALUATION)],
)
def test_programs_refuse_a_url_as_output_before_they_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, given: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run(REPO / script, *given), f": expected a local path, got {URL}")
    assert not list(tmp_path.iterdir())
