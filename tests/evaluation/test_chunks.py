"""Computations in chunks: what is stored, and what is missing at the end."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from causaldiffae.errors import InputError
from causaldiffae.evaluation.chunks import claim_parts, compute_chunks

CPU = torch.device("cpu")


def test_only_missing_chunks_are_computed_and_all_are_returned_in_order(tmp_path: Path) -> None:
    done: list[int] = []

    def compute(number: int) -> dict[str, np.ndarray]:
        done.append(number)
        return {"value": np.array([number])}

    claim_parts(tmp_path / "parts", "a")
    for expected in ([0, 1, 2], []):
        found = compute_chunks(compute, [1, 1, 1], tmp_path / "parts", 1, CPU, "test")
        assert [int(part["value"][0]) for part in found] == [0, 1, 2] and done == expected
        done.clear()
    with pytest.raises(InputError, match="expected parts of this model, data and settings, got others"):
        claim_parts(tmp_path / "parts", "b")


def test_a_line_says_when_the_bar_moves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chunk gives no sign of progress; there is nothing to wait for where all chunks are finished."""
    for said in (True, False):
        compute_chunks(lambda number: {"value": np.array([number])}, [50, 7], tmp_path, 1, CPU, "angle")
        line = "angle: the bar moves after each chunk of 50 images, which may take minutes; the time left is estimated"
        assert (line in capsys.readouterr().err) is said


def test_a_chunk_that_another_process_removed_is_an_error(tmp_path: Path) -> None:
    def compute(number: int) -> dict[str, np.ndarray]:
        for path in tmp_path.glob("chunk_*.npz"):
            path.unlink()
        return {"value": np.array([number])}

    with pytest.raises(InputError, match="chunk_00000.npz: expected the outputs of a chunk, got none"):
        compute_chunks(compute, [1, 1], tmp_path, 1, CPU, "test")


def die_in_the_second(number: int) -> dict[str, np.ndarray]:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": np.array([number])}


def test_a_process_that_died_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a worker process died .*; the same command resumes after the finished"):
        compute_chunks(die_in_the_second, [1, 1], tmp_path, 2, CPU, "test")
