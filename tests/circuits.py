"""A CausalCircuit data set with stripes instead of rendered images."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from causaldiffae.generators.circuit_writer import write_dataset

COUNTS = {"num_train": 7, "num_val": 2, "num_test": 3}


def painted(labels: Any, size: int) -> np.ndarray:
    """Replaces the renderer: one flat colour for each of the four labels, in four stripes."""
    stripes = np.repeat(np.uint8(255 * np.asarray(labels)), size // 4)
    return np.broadcast_to(stripes[:, None, None], (size, size, 3)).copy()


def write_painted(out: Path, **changes: Any) -> Path:
    return write_dataset(out, **{**COUNTS, "image_size": 32, "workers": 1, "progress": False, **changes})


def save(folder: Path, members: dict[str, Any], name: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **members)
    return folder


def npy(descr: str, shape: Any, content: bytes, header: str | None = None) -> bytes:
    """A member with any header."""
    text = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") + content


def replace_member(path: Path, name: str, content: bytes | None, method: int = zipfile.ZIP_STORED) -> None:
    """Replaces or removes a member of an npz file."""
    with zipfile.ZipFile(path) as archive:
        kept = {entry: archive.read(entry) for entry in archive.namelist() if entry != f"{name}.npy"}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, value in kept.items():
            archive.writestr(entry, value)
        if content is not None:
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content, method)
