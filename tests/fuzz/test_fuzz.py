"""Every parser of untrusted files, by hypothesis: an input is read or refused in one line, and nothing is written.

`tools/fuzz/mutate.py` is the long run, `tools/fuzz/atheris_targets.py` the coverage-guided one; docs/untrusted_files.md
describes both.
"""

import functools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz_mutations import mutate
from fuzz_parsers import PARSERS, Files, Parser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import Watch, make_input, run_one, write

from causaldiffae.datasets.folder import image_cache, image_folder

SLOW = {"model folder", "published pt", "predictor", "checkpoint", "labels and graph", "config yaml"}
SHARE = settings().max_examples / 100  # the profile's number of examples, relative to hypothesis's default
EXAMPLES = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=int(30 * SHARE))


@functools.cache
def seeds(name: str) -> list[Files]:
    return PARSERS[name].seeds()


@functools.cache
def watch() -> Watch:
    return Watch()


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache beside the data would be a written file."""
    for module in (image_cache, image_folder):
        monkeypatch.setattr(module, "cache_folder", lambda folder: None)
    monkeypatch.setattr(image_cache, "shared_folder", lambda where, size: None)


@pytest.fixture(autouse=True)
def no_warnings(recwarn: pytest.WarningsRecorder) -> None:
    """Parsers may warn of files that they skip."""


def outcome_of(name: str, files: Files) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x", files)
        before = sorted(Path(folder).rglob("*"))
        outcome = run_one(PARSERS[name], Path(folder) / "x", watch())
        assert set(Path(folder).rglob("*")) <= set(before)
    return outcome


@pytest.mark.parametrize("name", PARSERS)
def test_the_seeds_are_read(name: str) -> None:
    outcomes = [outcome_of(name, files) for files in seeds(name)]
    assert ("accepted", "") in outcomes and {kind for kind, _ in outcomes} <= {"accepted", "refused"}, outcomes


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    @settings(EXAMPLES, max_examples=int((8 if name in SLOW else 30) * SHARE))
    @given(st.randoms(use_true_random=False), st.integers(0, 100), st.integers(0, 100), st.booleans())
    def check(rng: random.Random, first: int, second: int, repaired: bool) -> None:
        parser, some = PARSERS[name], seeds(name)
        files = mutate(some[first % len(some)], some[second % len(some)], rng, parser.mutate_names)
        files = parser.repair(files) if parser.repair and repaired else files
        kind, what = outcome_of(name, files)
        assert kind != "fault", what

    check()


@pytest.mark.parametrize("name", sorted(set(PARSERS) - SLOW))
def test_any_content_is_read_or_refused(name: str) -> None:
    @EXAMPLES
    @given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace")))
    def check(content: bytes) -> None:
        kind, what = outcome_of(name, seeds(name)[0] | {next(iter(seeds(name)[0])): content})
        assert kind != "fault", what

    check()


def test_an_input_is_determined_by_its_number() -> None:
    some = seeds("idx")
    assert make_input("idx", 5, 1, some) == make_input("idx", 5, 1, some) != make_input("idx", 6, 1, some)


def hang(path: Path) -> None:
    while True:
        pass


def fail(path: Path) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda path: (path / "x").write_text("x"), "opened"),
        (lambda path: (path / "y").mkdir(), "os.mkdir"),
        (hang, "more than a second"),
        (fail, "KeyError"),
    ],
)
def test_the_harness_recognises_faults(tmp_path: Path, read: Callable[[Path], object], fault: str) -> None:
    kind, what = run_one(Parser(list, read), tmp_path, watch())
    assert kind == "fault" and fault in what
    assert run_one(Parser(list, lambda path: 3), tmp_path, watch()) == ("accepted", "")
