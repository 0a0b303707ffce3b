"""Registry of all parsers of untrusted files, with small valid files as seeds.

A parser reads a folder of files, and accepts them or raises `InputError`. Any other exception, a written file, a second
of CPU time or a gigabyte of memory is a fault.
"""

import io
import json
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas  # noqa: F401  imported before the time of an input is measured
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support import published_causaldiffae
from tiny import small_config, squares, squares_spec

from causaldiffae.checkpoints.checkpoint import export_weights, load_checkpoint, save_checkpoint
from causaldiffae.datasets import interventional as interventional_data
from causaldiffae.datasets import label_subsets as supervision
from causaldiffae.datasets.circuit import read_circuit
from causaldiffae.datasets.do_text import parse_do
from causaldiffae.datasets.folder import image_cache, image_folder
from causaldiffae.datasets.folder.graph_files import parse_graph
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.folder.label_table import SPLITS
from causaldiffae.datasets.folder.problems import Problems
from causaldiffae.datasets.registry import dataset_spec, read_split
from causaldiffae.evaluation import report as report_page
from causaldiffae.evaluation import tables as benchmark_tables
from causaldiffae.evaluation.protocol import VERSION
from causaldiffae.evaluation.run import read_results
from causaldiffae.files import idx
from causaldiffae.files.array_cache import open_array
from causaldiffae.files.reading import read_file
from causaldiffae.generators import morphomnist, pendulum
from causaldiffae.logger import read_progress
from causaldiffae.predictors.predictor import Predictor, PredictorConfig, load_predictor, save_predictor
from causaldiffae.script_util import create_model_and_diffusion, describe_checkpoint, load_model, parse_config

Files = dict[str, bytes]


@dataclass(frozen=True)
class Parser:
    """A parser of untrusted files.

    Attributes:
        seeds: returns valid files by their names in the folder.
        read: reads the folder; its result is ignored.
        weight: relative share of the inputs.
        repair: corrects checksums after a mutation, to reach the code behind them.
        mutate_names: also mutate file names.
    """

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], object]
    weight: float = 1.0
    repair: Callable[[Files], Files] | None = None
    mutate_names: bool = False


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def _npz(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _image(kind: str, shape: tuple[int, ...] = (9, 12, 3), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_noise(*shape)).save(buffer, kind, **options)
    return buffer.getvalue()


def _folder(path: Path) -> Files:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _written_by(make: Callable[[Path], object]) -> Files:
    """Returns the files that `make` writes to a folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return _folder(Path(folder))


def _first(path: Path) -> Path:
    return next(file for file in sorted(path.iterdir()) if file.is_file())


# --- data sets --------------------------------------------------------------------------------------------------------


def _idx(array: np.ndarray, plain: bool = False) -> bytes:
    content = _written_by(lambda folder: idx.write_idx(folder / "x", array))["x"]
    return zlib.decompress(content, 47) if plain else content


def _idx_seeds() -> list[Files]:
    arrays = [_noise(3, 5, 4), _noise(7)]
    return [{"a-idx": _idx(array, plain)} for array in arrays for plain in (False, True)]


MORPHO = b"index,thickness,intensity\n0,2.5,120.5\n1,1.25,90\n2,3.5,200\n"


def _digits_seeds() -> list[Files]:
    files = {
        "train-images-idx3-ubyte.gz": _idx(_noise(3, 28, 28)),
        "train-labels-idx1-ubyte": _idx(_noise(3) % 10, plain=True),
        "train-morpho.csv": MORPHO,
        "train-base-idx3-ubyte.gz": _idx(_noise(3, 28, 28, seed=1)),
    }
    return [files]


def _pendulum_seeds() -> list[Files]:
    labels = [pendulum.true_labels(i, j)[0] for i, j in ((3, 80), (-40, 120))]
    return [{f"train/{pendulum.file_name(row)}": _image("PNG", (96, 96, 4)) for row in labels}]


def _circuit_seeds() -> list[Files]:
    images = [_image("JPEG", (16, 16, 3)) for _ in range(4)]
    latents = np.random.default_rng(0).random((2, 2, 4))
    objects = np.empty((2, 2), object)
    objects[:] = np.array(images, object).reshape(2, 2)
    fixed = np.array(images).reshape(2, 2)
    note = np.array(b'{"dataset": "circuit", "image_size": 16, "stand_in": true, "version": 1}')
    return [
        {"train.npz": _npz(original_latents=latents, imgs=objects)},
        {"train-0.npz": _npz(True, original_latents=latents, imgs=fixed, stand_in=note)},
    ]


def _read_pickled(path: Path) -> object:
    from causaldiffae.files.npz import NpzFile

    with NpzFile(_first(path)) as file:
        return [len(content) for content in file.byte_strings("imgs", 3, 1 << 20)]


def _pickled_seeds() -> list[Files]:
    strings = np.array([b"one", b"two", b""], object)
    return [{"a.npz": _npz(imgs=strings)}, {"a.npz": _npz(True, imgs=np.array([b"one", b"two", b"three"]))}]


DIGITS = replace(squares(4), classes=None)


def _interventional_seeds() -> list[Files]:
    arrays = {"images": _noise(8, 1, 8, 8), "labels": np.random.default_rng(0).random((8, 2)).astype(np.float32)}
    return [{"a.npz": _npz(compressed, **arrays)} for compressed in (False, True)]


def _cache_seeds() -> list[Files]:
    images = _noise(5, 3, 4, 4)
    buffer = io.BytesIO()
    np.save(buffer, images)
    sums = {"checksums": [zlib.crc32(images.data)]}
    return [{"a.npy": buffer.getvalue(), "a.json": json.dumps(sums).encode()}]


# --- a folder of images -----------------------------------------------------------------------------------------------

TABLE = (
    b"file,age,hat,split\nim/0.png,20,cap,train\nim/1.png,30.5,none,train\nim/2.png,40,cap,train\n"
    b"im/3.png,,none,val\nim/0.png/../4.png,50,cap,test\n"
)
FOLDER_GRAPH = b"edges: [[age, hat]]\nvariables:\n  age: {unit: years, low: 18}\n  hat: {kind: binary}\nimage_size: 8\n"
GML = b'graph [\n directed 1\n node [ id 0 label "a" ]\n node [ id 1 label "b" ]\n edge [ source 0 target 1 ]\n]\n'
DOT = b'/* c */ strict digraph "m" { a -> b -> {c d} [color=red]; subgraph s { e -> "f g" } node [shape=box]; b }\n'
GRAPH_JSON = b'{"names": ["a", "b", "c"], "adjacency": [[0, 1, 0], [0, 0, 1], [0, 0, 0]]}'
NODE_LINK = b'{"directed": true, "nodes": [{"id": "a"}, {"id": "b"}], "links": [{"source": "a", "target": "b"}]}'
DAGITTY = b'dag {\nbb="0,0,1,1"\na [exposure,pos="0,0"]\nb [outcome]\na -> b [pos="1,1"]\nb <- {c d}\n}\n'
TETRAD = b"Graph Nodes:\na;b;c\n\nGraph Edges:\n1. a --> b\n2. c <-- a\n"
BIF = b"network n {}\nvariable a { type discrete [ 2 ] { x, y }; }\nvariable b { }\nprobability ( b | a ) { }\n"
GRAPHML = (
    b'<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed">'
    b'<node id="a"/><node id="b"/><edge source="a" target="b"/></graph></graphml>'
)


def _matrix_seeds() -> list[Files]:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[0, 1], [0, 0]], np.int8))
    return [{"g.npy": buffer.getvalue()}]


def _read_table(path: Path) -> object:
    folder, content = image_folder.open_image_folder(path, problems := Problems())
    problems.raise_first()
    assert content is not None
    for split in SPLITS:
        names = [content.table.files[row] for row in content.rows(split)]
        for name, stamp in zip(names, folder.stamps(names), strict=True):
            assert not isinstance(stamp, image_cache.FileStamp) or (path / name).resolve().is_relative_to(path), name
        image_folder.read_images(folder, content, content.rows(split), split, problems)
    return content


def _table_seeds() -> list[Files]:
    images = {f"im/{i}.png": _image("PNG", (8, 8, 3)) for i in range(3)}
    table = b"file,age,hat,split\n" + b"".join(
        f"im/{i}.png,{20 + i},{hat},{split}\n".encode()
        for i, hat, split in ((0, "cap", "train"), (1, "none", "train"), (2, "cap", "test"))
    )
    excel = ",file;age;hat;split;\n0;im\\0.png;20,5;cap;0;\n1;1;30,5;none;0;\n2;2;NA;TRUE;2;\n".encode("utf-16")
    lines = (
        b'{"file_name": "im/0.png", "age": 20.5, "hat": "cap"}\n{"file_name": "im/1.png", "age": null, "hat": true}\n'
    )
    celeba = b"3\nage hat\n0.png -1  1\n1.png  1 -1\n2.png  1  1\n"
    return [
        {"labels.csv": table, "graph.yaml": FOLDER_GRAPH, **images},
        {"labels.csv": TABLE, "graph.dot": DOT},
        {"labels.csv": excel, "graph.yaml": FOLDER_GRAPH, **images},
        {"metadata.jsonl": lines, "graph.yaml": FOLDER_GRAPH, **images},
        {"list_attr_celeba.txt": celeba, "list_eval_partition.txt": b"0.png 0\n1.png 1\n2.png 2\n", "graph.dot": DOT},
    ]


def _image_seeds() -> list[Files]:
    grey, alpha = (9, 12), (9, 12, 4)
    deep = io.BytesIO()
    Image.fromarray(_noise(6, 5).astype(np.uint16) * 257).save(deep, "PNG")
    palette = io.BytesIO()
    Image.fromarray(_noise(9, 12, 3)).quantize(8).save(palette, "PNG", transparency=1)
    return [
        {"a": _image("PNG")},
        {"a": _image("PNG", alpha)},
        {"a": _image("JPEG", quality=80)},
        {"a": _image("JPEG", grey, progressive=True)},
        {"a": _image("WEBP", lossless=True)},
        {"a": _image("WEBP", alpha)},
        {"a": deep.getvalue()},
        {"a": palette.getvalue()},
    ]


def _read_image(path: Path) -> object:
    content = read_file(_first(path), 1 << 26)
    channels, rule = ((1, "crop"), (3, "area"), (4, "crop"))[len(content) % 3]
    assert ImageRule(8, channels, rule).decode(content).shape == (channels, 8, 8)
    return None


# --- models -----------------------------------------------------------------------------------------------------------


def _write_run(folder: Path) -> None:
    torch.manual_seed(0)
    config, spec = small_config(), squares_spec()
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    training = {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": (1e-3, float("inf"))}}
    described = describe_checkpoint(config, spec)
    save_checkpoint(folder, 3, model_state=state, ema_states={"0.9": state}, training_state=training, config=described)


def _write_model(folder: Path) -> None:
    torch.manual_seed(0)
    config, spec = small_config(), squares_spec()
    model = create_model_and_diffusion(config, spec)[0]
    export_weights(folder / "m", model.state_dict(), describe_checkpoint(config, spec), torch.float16)


def repair_manifest(files: Files) -> Files:
    """Updates the sizes and hashes in the manifest."""
    name = next((name for name in files if name.endswith("manifest.json")), None)
    try:
        if name is None:
            return files
        manifest = json.loads(files[name])
        for entry, described in manifest["files"].items() if manifest else ():
            content = files[name.replace("manifest.json", entry)]
            described.update(size=len(content), sha256=sha256(content).hexdigest())
        return {**files, name: json.dumps(manifest).encode()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return files


def _read_checkpoint(path: Path) -> object:
    load_checkpoint(path, ema="0.9")
    return load_checkpoint(path, with_training=True)


def _write_predictor(folder: Path) -> None:
    torch.manual_seed(0)
    save_predictor(folder / "p", Predictor(squares_spec(4), PredictorConfig((8, 8), 2, 8)), {"observational": {"a": 1}})


def _published_seeds() -> list[Files]:
    state = published_causaldiffae(num_classes=None)[0]
    legacy = io.BytesIO()
    torch.save(state, legacy)
    return [{"model.pt": legacy.getvalue()}]


def _figure(mean: float | None = 1.5) -> dict[str, float | None]:
    return {"mean": mean, "low": 1.0, "high": 2.0}


def results() -> dict[str, Any]:
    """A results file with everything that tables and the report read."""
    scores: dict[str, Any] = {
        "truth": {"l1": _figure(), "psnr": _figure(), "ssim": _figure()},
        "effectiveness": {"predictor": {"size": _figure()}, "measured": {"size": _figure(None), "grey": _figure()}},
        "class_accuracy": _figure(),
        "cld": _figure(),
        "realism": {"fid_own": _figure(), "kid_own": _figure()},
    }
    model = {**scores, "effects": {"grey": {key: _figure() for key in ("model", "truth", "error")}}}
    digest = "0123456789abcdef"
    return {
        "protocol": {"name": "causaldiffae benchmark", "version": VERSION},
        "model": {"type": "causaldae", "step": 3, "digest": digest, "parameters": 5, "seed": 0, "recipe": digest,
                  "path": "runs/a", "name": "a"},
        "data": {"dataset": "squares", "digest": digest, "split": "test", "images": 8, "image_size": 8, "channels": 1,
                 "variables": ["size", "grey"], "units": ["", ""], "truth": "drawn", "folder": "data"},
        "settings": {"seed": 0, "steps": 25, "variables": ["size"]},
        "asked": digest, "digest": digest,
        "predictor": {"digest": digest, "figures": {"observational": {"size": 0.5}, "interventional": {"size": 1.0}},
                      "path": "p"},
        "versions": {"python": "3.11"},
        "timing": {"asking_seconds": 1.0},
        "results": {
            "interventions": {"size": {"range": [1.0, 7.0], "answers": {"model": model, "truth": scores,
                                                                          "do_nothing": scores},
                                       "reversibility": {"1": _figure(), "long": _figure()}}},
            "composition": {"1": _figure(), "long": _figure()},
            "dci": {"boosting": {"block_disentanglement": _figure()}, "lasso": {"informativeness": _figure()}},
            "broken": {"null": {"images": 0, "pixels": 0}, "size": {"images": 1, "pixels": 3}},
        },
    }  # fmt: skip


def _read_results(path: Path) -> object:
    files = [(file, read_results(file)) for file in sorted(path.glob("*.json"))]
    text = benchmark_tables.tables([found for _, found in files])
    page = report_page.page(files)
    assert "<script" not in page.lower(), "not escaped"
    return text


def _results_seeds() -> list[Files]:
    one, other = results(), results()
    other["model"] = {**other["model"], "name": "<script>b", "seed": 1}
    return [{"a.json": json.dumps(one).encode()}, {name: json.dumps(found).encode() for name, found in
                                                   (("a.json", one), ("b.json", other))}]  # fmt: skip


def _pictures_seeds() -> list[Files]:
    images = _noise(2, 1, 8, 8)
    kept = {"factual": images, "labels": np.ones((2, 2)), "reconstruction": images, "images/size": images,
            "values/size": np.array([1.0, 2.0]), "true_images/size": images}  # fmt: skip
    return [{"a.pictures.npz": _npz(True, **kept)}]


# --- text -------------------------------------------------------------------------------------------------------------

CONFIG = b"batch_size: 4\nlr: 1e-4\nchannel_mult: '1,2'\nema_rate: '0.9'\nclass_cond: false\nrun_dir: runs/a\n"
LIST = "".join(f"{name}\n" for name in squares(8).ids[:4]).encode()
PROGRESS = b"step,loss\n1,0.5\n2,0.25\n"
DO = b"thickness=4.5,intensity=90"


def _read_list(path: Path) -> object:
    return supervision._read_list(_first(path), squares(8), 4)


def _read_do(path: Path) -> object:
    text = _first(path).read_bytes().decode("utf-8", "surrogateescape")
    return parse_do(text, dataset_spec("morphomnist"))


def _read_interventional(path: Path) -> object:
    return interventional_data._read(_first(path), DIGITS, 2)


def _read_digits(path: Path) -> object:
    return read_split("morphomnist", path, "train")


def _parse_graph(path: Path) -> object:
    return parse_graph(_first(path).read_bytes(), _first(path).name, ("a", "b"))


def _read_circuit(path: Path) -> object:
    return read_circuit(dataset_spec("circuit", 8), path, "train", None)


PARSERS: dict[str, Parser] = {
    "idx": Parser(_idx_seeds, lambda path: idx.read_idx(_first(path)), 2),
    "morphomnist folder": Parser(_digits_seeds, _read_digits),
    "morphomnist csv": Parser(lambda: [{"a.csv": MORPHO}], lambda path: morphomnist.read_morpho_csv(_first(path)), 2),
    "pendulum folder": Parser(
        _pendulum_seeds, lambda path: read_split("pendulum", path, "train"), mutate_names=True, weight=0.6
    ),
    "circuit npz": Parser(_circuit_seeds, _read_circuit),
    "pickled bytes": Parser(_pickled_seeds, _read_pickled, 2),
    "interventional npz": Parser(_interventional_seeds, _read_interventional),
    "image cache": Parser(_cache_seeds, lambda path: open_array(path / "a.npy", (5, 3, 4, 4), "uint8", "")),
    "labels and graph": Parser(_table_seeds, _read_table),
    "graph yaml": Parser(lambda: [{"g.yaml": FOLDER_GRAPH}], _parse_graph, 1.5),
    "graph gml": Parser(lambda: [{"g.gml": GML}], _parse_graph, 1.5),
    "graph dot": Parser(lambda: [{"g.dot": DOT}], _parse_graph, 1.5),
    "graph json": Parser(lambda: [{"g.json": GRAPH_JSON}, {"g.json": NODE_LINK}], _parse_graph, 1.5),
    "graph text": Parser(lambda: [{"g.txt": each} for each in (DAGITTY, TETRAD, BIF, GML)], _parse_graph, 1.5),
    "graph graphml": Parser(lambda: [{"g.graphml": GRAPHML}], _parse_graph),
    "graph table": Parser(lambda: [{"g.csv": b",a,b\na,0,1\nb,0,0\n"}, {"g.tsv": b"from\tto\na\tb\n"}], _parse_graph),
    "graph npy": Parser(_matrix_seeds, _parse_graph, 0.5),
    "image": Parser(_image_seeds, _read_image, 3),
    "checkpoint": Parser(lambda: [_written_by(_write_run)], _read_checkpoint, 1, repair_manifest),
    "model folder": Parser(lambda: [_written_by(_write_model)], lambda path: load_model(str(path / "m")), 0.3),
    "published pt": Parser(_published_seeds, lambda path: load_model(str(_first(path))), 0.3),
    "predictor": Parser(lambda: [_written_by(_write_predictor)], lambda path: load_predictor(path / "p"), 0.5),
    "results json": Parser(_results_seeds, _read_results),
    "report pictures": Parser(_pictures_seeds, lambda path: report_page.read_images(_first(path)), 0.5),
    "config yaml": Parser(
        lambda: [{"c.yaml": CONFIG}], lambda path: parse_config(["--config", str(_first(path))]), 0.4
    ),
    "labelled list": Parser(lambda: [{"l.txt": LIST}], _read_list),
    "do text": Parser(lambda: [{"do": DO}, {"do": b"intensity=2e2"}], _read_do, 2),
    "progress csv": Parser(lambda: [{"p.csv": PROGRESS}], lambda path: read_progress(_first(path))),
}
