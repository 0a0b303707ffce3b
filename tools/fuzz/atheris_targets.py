"""Coverage-guided fuzzing with atheris of the parsers that random mutations cover least.

    pip install -e .[fuzz]
    python tools/fuzz/atheris_targets.py TARGET [CORPUS_DIR] [-max_total_time=15] [other libFuzzer flags]

TARGET: idx, npz, folder (labels.csv and the graph), manifest. An input is the content of one file; for `folder`, the
table and the graph separated by a zero byte. The corpus folder is created and filled with seeds on first use. Atheris
stops at the first fault and writes the input to crash-*; pass that file after TARGET to reproduce the fault. Wheels of
atheris require Python 3.11 or newer.
"""

import contextlib
import gzip
import io
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

READERS = (
    *("checkpoints.checkpoint", "datasets.folder", "files.dot", "files.idx", "files.npz", "files.pickles"),
    *("files.reading", "files.yaml", "graphs"),
)

with atheris.instrument_imports(include=[f"causaldiffae.{name}" for name in READERS]):
    from causaldiffae.checkpoints.checkpoint import verify
    from causaldiffae.datasets.folder.content import interpret
    from causaldiffae.datasets.folder.table_files import TableFile
    from causaldiffae.datasets.registry import find_dataset
    from causaldiffae.errors import DataError
    from causaldiffae.files.idx import read_idx
    from causaldiffae.files.npz import NpzFile


find_dataset("folder")  # graph files may name a data set: all must be registered


def read_idx_bytes(content: bytes, folder: Path) -> None:
    (folder / "a-idx").write_bytes(content)
    read_idx(folder / "a-idx", 1 << 20)


def read_npz_bytes(content: bytes, folder: Path) -> None:
    (folder / "a.npz").write_bytes(content)
    with NpzFile(folder / "a.npz") as file:
        for name in file.names:
            header = file.header(name)
            if header.dtype.kind in "OS" and header.shape:
                list(file.byte_strings(name, header.shape[0], 1 << 16))
            else:
                file.array(name, (None,) * len(header.shape), "biufS")


def read_folder_bytes(content: bytes, folder: Path) -> None:
    table, _, graph = content.partition(b"\0")
    kind = (".yaml", ".dot", ".gml", ".json")[len(table) % 4]
    interpret("set", (TableFile("labels.csv", table),), (f"set/graph{kind}", graph))[1].raise_first()


def read_manifest_bytes(content: bytes, folder: Path) -> None:
    step = folder / "step_0000003"
    if not step.is_dir():
        step.mkdir()
        for name in ("config.json", "model.safetensors"):
            (step / name).write_bytes(b"x")
    (step / "manifest.json").write_bytes(content)
    verify(step)


def _npz_seed(compressed: bool, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npz_seeds() -> list[bytes]:
    strings, numbers = np.array([[b"one", b"two"]], object), np.arange(6.0).reshape(2, 3)
    return [_npz_seed(how, imgs=strings, a=numbers, b=strings.astype("S3")) for how in (False, True)]


def folder_seeds() -> list[bytes]:
    """The length of the table, with blank lines appended, selects the format of the graph."""
    seeds = []
    for form, graph in enumerate(GRAPHS):
        seeds.append(TABLE + b"\n" * ((form - len(TABLE)) % 4) + b"\0" + graph)
    return seeds


SHA = b"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
MANIFEST = (
    b'{"format": "causaldiffae checkpoint", "version": 1, "step": 3, "files": {"config.json": {"size": 1, "sha256": "'
    + SHA
    + b'"}, "model.safetensors": {"size": 1, "sha256": "'
    + SHA
    + b'"}}}'
)
TABLE = b"file,age,hat,split\na.png,20,cap,train\nb.png,30.5,none,train\nc.png,,cap,test\n"
GRAPHS = (
    b"edges: [[age, hat]]\nvariables: {age: {unit: years, low: 18}, hat: {kind: binary}}\nimage_size: 8\n",
    b'digraph "m" { age -> {hat} [color=red]; node [shape=box] }',
    b'graph [ directed 1 node [ id 0 label "age" ] node [ id 1 label "hat" ] edge [ source 0 target 1 ] ]',
    b'{"names": ["age", "hat"], "adjacency": [[0, 1], [0, 0]]}',
)
IDX = b"\0\0\x08\x02\0\0\0\x02\0\0\0\x03abcdef"
TARGETS: dict[str, tuple[Callable[[bytes, Path], None], Callable[[], list[bytes]]]] = {
    "idx": (read_idx_bytes, lambda: [IDX, gzip.compress(IDX)]),
    "npz": (read_npz_bytes, npz_seeds),
    "folder": (read_folder_bytes, folder_seeds),
    "manifest": (read_manifest_bytes, lambda: [MANIFEST]),
}


def main(argv: list[str]) -> None:
    if len(argv) < 2 or argv[1] not in TARGETS:
        sys.exit(f"usage: {Path(argv[0]).name} {{{','.join(TARGETS)}}} [CORPUS_DIR or FILE] [libFuzzer flags]")
    read, seeds = TARGETS[argv[1]]
    warnings.simplefilter("ignore")
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        corpus = next((Path(given) for given in argv[2:] if not given.startswith("-")), None)
        if corpus is None:
            corpus = Path(folder, "corpus")
            argv.append(str(corpus))
        if not corpus.is_file():
            corpus.mkdir(parents=True, exist_ok=True)
            for number, content in enumerate(seeds()):
                (corpus / f"seed_{number}").write_bytes(content)

        def one(content: bytes) -> None:
            with contextlib.suppress(DataError):
                read(content, Path(folder))

        atheris.Setup([argv[0], *argv[2:], "-max_len=65536", "-rss_limit_mb=4096", "-timeout=10"], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
