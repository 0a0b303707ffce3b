"""Every parser of files from strangers, by hypothesis: an input is read or refused in one line, and nothing is written.

The long run is `mutate.py`, the coverage-guided one `atheris_targets.py`; docs/untrusted_files.md tells of both.
"""

import functools
import random
import tempfile
from pathlib import Path

import pytest
from fuzz_mutations import mutate
from fuzz_parsers import PARSERS, Files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import GIGABYTE, Watch, make_input, run_one, write

from causaldiffae.datasets.folder import image_cache, image_folder

SLOW = {"model folder", "published pt", "predictor", "checkpoint", "labels and graph", "config yaml"}
EXAMPLES = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), max_examples=30
)


@functools.cache
def seeds(name: str) -> list[Files]:
    return PARSERS[name].seeds()


@functools.cache
def watch() -> Watch:
    return Watch()


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of images is cached beside the data, on purpose."""
    for module in (image_cache, image_folder):
        monkeypatch.setattr(module, "cache_folder", lambda folder: None)


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
def test_changed_files_are_read_or_refused(name: str) -> None:
    """Hypothesis draws the changes, and shrinks to the simplest that fails."""

    @settings(EXAMPLES, max_examples=8 if name in SLOW else 30)
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
        files = seeds(name)[0]
        kind, what = outcome_of(name, {**files, next(iter(files)): content})
        assert kind != "fault", what

    check()


def test_an_input_follows_from_its_number() -> None:
    some = seeds("idx")
    assert make_input("idx", 5, 1, some) == make_input("idx", 5, 1, some) != make_input("idx", 6, 1, some)


def test_the_watch_sees_what_is_written(tmp_path: Path) -> None:
    """The harness itself: a parser that writes, hangs, or raises something else is a fault."""

    def parser(read: object) -> object:
        return type("Reader", (), {"read": staticmethod(read)})

    def hang(path: Path) -> None:
        while True:
            pass

    def fail(path: Path) -> None:
        raise KeyError("x")

    faults = {
        "opened": lambda path: (tmp_path / "x").write_text("x"),
        "os.mkdir": lambda path: (tmp_path / "y").mkdir(),
        "more than a second": hang,
        "KeyError": fail,
    }
    for word, read in faults.items():
        kind, what = run_one(parser(read), tmp_path, watch())  # type: ignore[arg-type]
        assert kind == "fault" and word in what
    assert run_one(parser(lambda path: 3), tmp_path, watch()) == ("accepted", "")  # type: ignore[arg-type]
    assert GIGABYTE == 2**30
