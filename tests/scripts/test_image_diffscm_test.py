"""The Diff-SCM test script on an untrained model of the digits with a predictor beside its weights."""

from pathlib import Path

import pytest
from paths import REPO
from running import Outcome, assert_refused, run
from tiny_models import write_diffscm

from causaldiffae.errors import InputError
from causaldiffae.script_util import load_model

CAUSALDIFFAE = REPO / "weights" / "pendulum_causaldae_mini"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_diffscm(tmp_path_factory.mktemp("diffscm") / "model")


def diffscm_test(folder: Path, out: Path, *flags: str) -> Outcome:
    paths = [f"--model_path={folder}", f"--data_dir={REPO / 'assets' / 'mnist_share'}", f"--out_dir={out}"]
    return run(REPO / "scripts" / "image_diffscm_test.py", *paths, "--num_images=3", "--steps=2", *flags)


def test_the_predictor_of_the_model_folder_guides_to_every_class(model_folder: Path, tmp_path: Path) -> None:
    options = ("--w=1.5", "--stop=0.75", "--rescale_quantile=0.99")
    outcome = diffscm_test(model_folder, tmp_path, "--do=digit=5", "--traverse=digit", *options)
    assert outcome.returncode == 0, outcome.stderr
    assert "do(digit=5)" in outcome.stdout and (tmp_path / "traversal_digit.png").is_file()
    rows = (tmp_path / "traversal_digit.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(k) for k in range(10)]
    assert load_model(str(model_folder)).model.predictor is not None
    assert load_model(str(model_folder), predictor="none").model.predictor is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--do=digit=12"], ["digit", "0, 1, 2"]),
        (["--do=digt=1"], ["do: expected one of digit, got 'digt'"]),
        (["--w=.inf"], ["w: expected a finite number, got inf"]),
        (["--predictor_path=/no/such/predictor"], ["/no/such/predictor"]),
        ([f"--model_path={CAUSALDIFFAE}"], ["model_path: expected a model of type diffscm", "of type causaldae"]),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    model_folder: Path, tmp_path: Path, flags: list[str], words: list[str]
) -> None:
    assert_refused(diffscm_test(model_folder, tmp_path, *flags), *words)


def test_a_predictor_for_another_type_of_model_is_refused() -> None:
    with pytest.raises(InputError, match="predictor_path: expected none for a model of type causaldae"):
        load_model(str(CAUSALDIFFAE), predictor="somewhere")
