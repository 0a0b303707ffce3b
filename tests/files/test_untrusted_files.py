"""Files from strangers: what was found by fuzzing and by thinking like one, each with its refusal."""

import ast
import io
import json
import os
import pickle
import struct
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import REPO
from PIL import Image
from tiny import small_config, squares, squares_spec

from causaldiffae.checkpoints.checkpoint import build_with_weights, export_weights
from causaldiffae.checkpoints.state_tree import unflatten_state
from causaldiffae.config import Config
from causaldiffae.datasets import interventional as interventional_data
from causaldiffae.datasets.folder import image_files
from causaldiffae.datasets.folder.graph_files import parse_graph
from causaldiffae.datasets.folder.image_files import ImageRule
from causaldiffae.datasets.images import _area_weights, resize_area
from causaldiffae.datasets.registry import read_split
from causaldiffae.datasets.spec import DatasetSpec
from causaldiffae.errors import MAX_MESSAGE, DataError, InputError
from causaldiffae.files import images as safe_images
from causaldiffae.files.dot import parse_dot
from causaldiffae.files.idx import read_idx
from causaldiffae.files.images import open_image
from causaldiffae.files.npz import NpzFile
from causaldiffae.files.reading import file_stem, load_torch_state_dict, read_file
from causaldiffae.files.storage import LocalFolder
from causaldiffae.files.yaml import parse_yaml
from causaldiffae.generators.morphomnist import read_morpho_csv
from causaldiffae.graphs import CausalGraph
from causaldiffae.script_util import (
    create_model_and_diffusion,
    describe_checkpoint,
    load_model,
    parse_config,
    run_cli,
)

PACKAGE = REPO / "causaldiffae"


def seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def refuses(act: Callable[[], object], message: str, kind: type[InputError] = DataError) -> None:
    with pytest.raises(kind, match=message) as caught:
        act()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 3000


# --- one way to open each kind of file --------------------------------------------------------------------------------

OPENERS = {
    ("torch", "load"): {"reading"},  # with weights_only=True, see below
    ("Image", "open"): {"images"},
    ("np", "load"): {"circuit_writer"},  # its own parts, in the folder that it is writing
    ("zipfile", "ZipFile"): {"reading", "npz", "circuit_writer"},
    ("gzip", "GzipFile"): {"idx"},
    ("yaml", "load"): set(),
    ("yaml", "unsafe_load"): set(),
    ("pickle", "load"): set(),
    ("pickle", "loads"): set(),
}


def test_files_are_opened_in_named_places_only() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                called = (owner.id if isinstance(owner, ast.Name) else "", node.func.attr)
                assert path.stem in OPENERS.get(called, {path.stem}), f"{path.name}:{node.lineno}: {'.'.join(called)}"
                if called == ("torch", "load"):
                    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    assert given.get("weights_only") == "True"
                if called == ("np", "load"):
                    assert "allow_pickle=False" in ast.unparse(node)


# --- graphs and YAML --------------------------------------------------------------------------------------------------


def test_nested_braces_cost_no_time() -> None:
    """A general DOT parser took 330 s for the 16 levels."""
    text = "digraph{" + "{" * 16 + "b" + "}" * 16 + "}"
    assert seconds(lambda: parse_graph(text.encode(), "g.dot")) < 0.5
    assert parse_graph(text.encode(), "g.dot").names == ("b",)
    refuses(lambda: parse_graph(b"digraph" + b"{" * 60, "g.dot"), "g.dot: it is no DOT graph .50 nested subgraphs")
    causes, effects = (" ".join(f"{letter}{i}" for i in range(400)) for letter in "ab")
    many = f"digraph {{ {{{causes}}} -> {{{effects}}} }}"
    refuses(lambda: parse_graph(many.encode(), "g.dot"), "g.dot: it has more than 50000 edges")


DOT = {
    'digraph "m" { a:n -> "b c":p:sw -> d; }': (["a", "b c", "d"], [["a", "b c"], ["b c", "d"]]),
    "# line\ndigraph { a = b; c // x -> y\n; graph [x=1]; edge [color=red] }": (["c"], []),
    'digraph { "a" + "b" -> <i<j>> }': (["ab", "<i<j>>"], [["ab", "<i<j>>"]]),
    "STRICT Digraph { {a b} -> subgraph x {c; d -> a} }": (
        ["a", "b", "c", "d"],
        [["d", "a"], ["a", "c"], ["a", "d"], ["a", "a"], ["b", "c"], ["b", "d"], ["b", "a"]],
    ),
    'digraph { -1.5 -> .5 [dir="forward", x] [y=z;]; "\\"q\\\\" }': (["-1.5", ".5", '"q\\'], [["-1.5", ".5"]]),
}


@pytest.mark.parametrize("text", DOT)
def test_dot_is_read_as_graphviz_does(text: str) -> None:
    assert tuple(parse_dot(text, "g")) == DOT[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its end where 'digraph' is needed"),
        ("digraph { a -> }", "'}' where a name is needed"),
        ("digraph { a [b }", "'}' where a name is needed"),
        ("digraph { a & b }", "'& b }' in line 1"),
        ('digraph {\n "a }', "in line 2"),
        ("digraph { < a }", "a < without >"),
        ("digraph { node }", "'}' where '\\[' is needed"),
        ("digraph { a -- b }", "it has an edge --; only cause -> effect is read"),
        ("digraph { edge [dir=back] a -> b }", "an edge has dir=back"),
        ("digraph { a", "its end where a name is needed"),
    ],
)
def test_what_is_no_dot(text: str, message: str) -> None:
    refuses(lambda: parse_dot(text, "g.dot"), f"^g.dot: .*{message}")


def test_graphs_are_bounded() -> None:
    names = tuple(f"v{i}" for i in range(1001))
    refuses(lambda: CausalGraph(names), "1001 variables and 0 edges, 1000 and 50000 are allowed", InputError)
    assert seconds(lambda: CausalGraph(names[:1000]).parents) < 1.0
    refuses(lambda: CausalGraph(("a\x1b[2J",)), "is no variable name; at most 200, none for control", InputError)
    refuses(lambda: CausalGraph(("a" * 201,)), "of 201 characters is no variable name", InputError)
    edges = CausalGraph(("c", "a", "b"), (("a", "b"), ("c", "b"), ("c", "a")))
    assert edges.parents == {"c": (), "a": ("c",), "b": ("c", "a")} and edges.children["c"] == ("a", "b")


def test_yaml_is_flat_and_small() -> None:
    refuses(lambda: parse_yaml("a: " + "[" * 30, "g"), "g: it is no YAML .it is nested more than 20 deep, line 1")
    assert parse_yaml("a: " + "[" * 19 + "]" * 19, "g")
    refuses(lambda: parse_yaml("a: " + "x" * (1 << 17), "g"), "g: it has 131075 characters, 131072 are allowed")
    refuses(lambda: parse_yaml("a: [1, 2]", "g", 4), "g: it holds 5 values, 4 are allowed")


LAUGHS = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [{'*a, ' * 9}*a]\n" for i in range(3)) + "run_dir: *b2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "anchors are not allowed, line 1"),
        ("run_dir: !!python/object/apply:os.system [ls]\n", "tags are not allowed, line 1"),
        ("run_dir: " + "[" * 50 + "\n", "nested more than 20 deep"),
        ("lr: 1\nlr: 2\n", "a key is given twice in the mapping at line 1"),
        ("config: other.yaml\n", "it names another configuration file; give both with --config"),
        ("x: " + "y" * 70000 + "\n", "it has 70004 bytes, 65536 are allowed"),
        ("".join(f"k{i}: 1\n" for i in range(2000)), "it holds 4001 values, 2000 are allowed"),
        ("\udcff", "expected UTF-8 text"),
        ("ema_rate: ~\n", "ema_rate: expected a value such as '0.9999', got null"),
    ],
)
@pytest.mark.parametrize("flag", ["--config {}", "--config={}", "--conf={}"])
def test_a_configuration_is_checked_before_it_is_parsed(tmp_path: Path, text: str, message: str, flag: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    kind = InputError if "null" in message else DataError
    if kind is DataError:
        refuses(lambda: parse_config(flag.format(path).split()), message, kind)
    else:
        refuses(lambda: parse_config(flag.format(path).split()), message, kind)


def test_a_configuration_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", tmp_path / "pipe", "{batch_size: 9}", "\0"):
        refuses(lambda path=path: parse_config(["--config", str(path)]), "^config: ", InputError)


# --- images -----------------------------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_open_in_named_formats_and_sizes() -> None:
    picture = Image.new("RGB", (9, 7))
    with open_image(encoded(picture), ("PNG",)) as opened:
        assert opened.size == (9, 7)

    def load(content: bytes, *formats: str, **limits: Any) -> None:
        with open_image(content, formats, **limits) as opened:
            opened.load()

    gif = encoded(picture, "GIF")
    refuses(lambda: load(gif, "JPEG", "PNG", "WEBP"), "^cannot be read as a JPEG, PNG or WebP image$")
    refuses(lambda: load(encoded(picture, "JPEG"), "PNG", where="a.png"), "^a.png: cannot be read as a PNG image$")
    refuses(lambda: load(encoded(picture), "PNG", max_pixels=62), "^it is 9x7, more than 62 pixels are refused$")
    refuses(lambda: load(encoded(picture)[:45], "PNG"), "^cannot be read as a PNG image$")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refuses(lambda: load(bomb(30_000, 30_000), "PNG"), "^expected at most 67108864 pixels, got far more$")
        refuses(lambda: load(bomb(5, 70_000), "PNG"), "^it is 5x70000, sides of at most 65536 pixels are allowed$")
        refuses(lambda: load(bomb(9_000, 9_000), "PNG"), "^it is 9000x9000, more than 67108864 pixels are refused$")
    with pytest.raises(DataError, match="^mine$"), open_image(encoded(picture), ("PNG",)):
        raise DataError("mine")


def bomb(width: int, height: int) -> bytes:
    """A PNG header that declares so many pixels, over no pixels at all."""
    import zlib

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_images, "LARGE", 10)
    inside, most = [0], [0]

    def read() -> None:
        with open_image(encoded(Image.new("L", (5, 5))), ("PNG",)):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize("strip", [1, 20, 1 << 20])
def test_transparency_lies_on_white_and_deep_grey_keeps_its_high_bytes(
    monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    monkeypatch.setattr(image_files, "_STRIP", strip)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (8, 8, 4)).astype(np.uint8))
    on_white = Image.alpha_composite(Image.new("RGBA", (8, 8), "white"), picture).convert("RGB")
    found = ImageRule(8, 3, "crop").decode(encoded(picture))
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(on_white))
    np.testing.assert_array_equal(
        ImageRule(8, 1, "area").decode(encoded(picture))[0], np.asarray(on_white.convert("L"))
    )
    deep = rng.integers(0, 65536, (8, 8)).astype(np.uint16)
    np.testing.assert_array_equal(ImageRule(8, 1, "crop").decode(encoded(Image.fromarray(deep)))[0], deep >> 8)


def test_resizing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 20)).astype(np.uint8)
    whole = resize_area(images, 8)
    monkeypatch.setattr("causaldiffae.datasets.images._RESIZED_AT_ONCE", 900)
    np.testing.assert_array_equal(resize_area(images, 8), whole)
    assert resize_area(images[:0], 8).shape == (0, 3, 8, 8)
    assert _area_weights.cache_info().maxsize == 16, "a folder's images may all be of another size"


# --- archives and tables ----------------------------------------------------------------------------------------------


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    os.mkfifo(tmp_path / "train" / "a_1_70_3_9.png")
    refuses(lambda: read_split("pendulum", tmp_path, "train"), "png: file not found, or not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refuses(lambda: read_idx(tmp_path / "pipe"), "pipe: not a regular file")
    refuses(lambda: read_morpho_csv(tmp_path / "pipe"), "pipe: not a regular file")
    refuses(lambda: read_file(tmp_path / "pipe", 10), "pipe: file not found, or not a regular file")
    (tmp_path / "ten").write_bytes(b"x" * 11)
    refuses(lambda: read_file(tmp_path / "ten", 10), "ten: it has 11 bytes, 10 are allowed")


def test_a_table_unpacks_to_a_limit(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.csv").write_bytes(gzip.compress(b"index,thickness,intensity\n" + b"," * (1 << 24)))
    refuses(lambda: read_morpho_csv(tmp_path / "a.csv"), "a.csv: it has more than 16777216 bytes, unpacked")
    (tmp_path / "b.csv").write_bytes(b'"' + b"x\n" * 5000 + b'",b\n')
    refuses(lambda: read_morpho_csv(tmp_path / "b.csv"), "column 'index' must be there once")


def test_a_member_has_the_size_that_is_asked_for_or_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((3, 4)), b=np.zeros(2, np.uint8))
    monkeypatch.setattr("causaldiffae.files.npz.MAX_ARRAY_BYTES", 90)
    with NpzFile(tmp_path / "a.npz") as file:
        assert file.array("a", (3, 4)).shape == (3, 4), "the caller has room for what it names"
        refuses(lambda: file.array("a", (None, 4)), "a: expected at most 90 bytes, got 96")
        refuses(lambda: file.arrays("fu", 200), "expected at most 200 bytes uncompressed, got ")


def test_kept_interventional_images_are_checked(tmp_path: Path) -> None:
    data, path = squares(2, num_classes=3), tmp_path / "a.npz"
    images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.zeros((4, 2), np.float32)

    def read(**changes: np.ndarray) -> object:
        np.savez(path, **{"images": images, "labels": labels, "classes": np.zeros(4, np.int64), **changes})
        return interventional_data._read(path, data, 2)

    assert len(read()) == 4  # type: ignore[arg-type]
    ending = "delete it to draw the images anew"
    refuses(lambda: read(classes=np.full(4, 3)), f"a.npz: it holds other images than its name says; {ending}")
    refuses(lambda: read(classes=np.full(4, -1)), f"it holds other images than its name says; {ending}")
    refuses(lambda: read(labels=labels + np.nan), f"it holds other images than its name says; {ending}")
    refuses(lambda: read(images=images.astype(np.uint16)), "it holds other images than its name says")
    refuses(
        lambda: read(images=images[:3]), rf"images: expected shape \(4, 1, 8, 8\), got \(3, 1, 8, 8\); {ending}"
    )
    refuses(lambda: read(images=np.array([[[[{}]]]] * 4)), "images: expected a dtype of kind u, got object")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """What is kept beside a data set: drawn graphs, interventional images. The set may have come with links."""
    mine, beside = tmp_path / "mine", tmp_path / "set"
    beside.mkdir()
    mine.write_text("untouched")
    (beside / "graph.png").symlink_to(mine)
    LocalFolder(beside).write("graph.png", b"drawn")
    assert (beside / "graph.png").read_bytes() == b"drawn" and not (beside / "graph.png").is_symlink()
    refuses(lambda: LocalFolder(beside).write("no/graph.png", b""), "graph.png: cannot be written")
    assert mine.read_text() == "untouched" and [path.name for path in beside.iterdir()] == ["graph.png"]


def pt_file(path: Path, content: bytes, *others: str) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for name in ("a/data.pkl", *others):
            archive.writestr(name, content)
    return path


def test_pickles_of_torch_are_looked_through_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it must not come to this"))
    path = tmp_path / "a.pt"
    size = b"\x8a\x05\0\0\0\0\x10"
    room = b"\x80\x02}q\0X\x01\0\0\0ac__builtin__\nbytearray\n" + size + b"\x85Rs."
    refuses(lambda: load_torch_state_dict(pt_file(path, room)), "refused .its pickle names '__builtin__ bytearray'")
    pairs = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(1, 60))
    twice = b"\x80\x02}q\0)\x85q\x01" + pairs + b"K\x01s."
    refuses(lambda: load_torch_state_dict(pt_file(path, twice)), "its pickle refers to one tuple twice")
    tensor = b"\x80\x02ctorch\nTensor\nK\x05\x85R."
    refuses(lambda: load_torch_state_dict(pt_file(path, tensor)), "its pickle names 'torch Tensor'")
    refuses(lambda: load_torch_state_dict(pt_file(path, pickle.dumps({"a": b"x"}, 4))), "has the instruction FRAME")
    refuses(lambda: load_torch_state_dict(pt_file(path, b"\x80\x02}q")), "a.pt: its pickle is damaged or cut off")
    refuses(lambda: load_torch_state_dict(pt_file(path, b".", "b/data.pkl")), "one data.pkl and different names are")
    refuses(lambda: load_torch_state_dict(pt_file(path, b".", "a/x", "a/x")), "one data.pkl and different names are")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_what_torch_saves_passes(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {"a": torch.zeros(2, 3, dtype=dtype), "b": torch.nn.Parameter(torch.ones(2)), "c": torch.zeros(())}
    state["d"] = state["a"][1:]  # storage shared
    network = torch.nn.BatchNorm2d(3).state_dict()
    for given in (state, network):
        torch.save(given, tmp_path / "a.pt")
        found = load_torch_state_dict(tmp_path / "a.pt")
        assert all(torch.equal(found[key], value) for key, value in given.items())


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config, spec = small_config(), squares_spec()
    model = create_model_and_diffusion(config, spec)[0]
    return export_weights(tmp_path_factory.mktemp("model") / "m", model.state_dict(), describe_checkpoint(config, spec))


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("model", "num_channels", 8192, "checkpoint of another model"),
        ("model", "num_channels", 2**40, "num_channels: expected at most 8192, got 1099511627776"),
        ("model", "rep_dim", 65536, "checkpoint of another model"),
        ("model", "num_res_blocks", 10**9, "num_res_blocks: expected at most 16, got 1000000000"),
        ("model", "channel_mult", "1," * 50, "channel_mult: expected at most 16 numbers up to 65536"),
        ("model", "num_channels", 33, "its sizes make no network|num_channels"),
        ("diffusion", "diffusion_steps", 10**12, "expected at most 100000"),
    ],
)
def test_sizes_of_a_strangers_model_cost_nothing(
    model_folder: Path, tmp_path: Path, part: str, key: str, value: Any, message: str
) -> None:
    described = json.loads((model_folder / "config.json").read_text())
    described["config"][part][key] = value
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    assert seconds(lambda: refuses(lambda: load_model(str(tmp_path)), message, InputError)) < 5


def test_a_model_is_built_without_memory_first(model_folder: Path) -> None:
    devices = []

    def build() -> torch.nn.Module:
        layer = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.GroupNorm(1, 3))
        devices.append(layer[0].weight.device.type)
        return layer

    state = build().state_dict()
    devices.clear()
    model = build_with_weights(build, {key: value.half() for key, value in state.items()}, "x")
    assert devices == ["meta", "cpu"] and not model.training and model[0].weight.dtype == torch.float32
    torch.testing.assert_close(model[0].weight, state["0.weight"], atol=1e-3, rtol=1e-3)
    devices.clear()
    refuses(lambda: build_with_weights(build, {"0.weight": torch.zeros(1)}, "x"), "another model", InputError)
    assert devices == ["meta"], "nothing is allocated for weights of another model"
    devices.clear()
    kept = build_with_weights(build, state, "x", hold_once=True)
    assert devices == ["meta"] and kept[0].weight.data_ptr() == state["0.weight"].data_ptr(), "held once"
    assert all(parameter.requires_grad for parameter in kept.parameters())
    refuses(
        lambda: build_with_weights(lambda: torch.nn.Conv2d(3, 4, 1, groups=2), {}, "x"), "x: its sizes make no network"
    )
    assert load_model(str(model_folder)).spec == squares_spec()


def test_a_training_state_of_unknown_kinds_is_refused_in_few_words() -> None:
    for tree in ({"$kind": "A" * 70_000}, {"$kind": "tensor", "name": "x"}, {"$kind": ["tuple"] * 999}):
        refuses(lambda tree=tree: unflatten_state({}, tree, "t.json"), "^t.json: an entry of .{0,100}kind")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../x"}, "name is '../../x', up to 64 letters, digits, - and _ are needed"),
        ({"name": "a" * 65}, "up to 64 letters"),
        ({"image_size": 2**30}, "image_size is 1073741824, at most 4096 is allowed"),
        ({"channels": 65}, "channels is 65, at most 64"),
        ({"num_classes": 10**6}, "num_classes is 1000000, at most 10000"),
    ],
)
def test_a_spec_is_bounded(change: dict[str, Any], message: str) -> None:
    refuses(lambda: DatasetSpec.from_dict({**squares_spec().to_dict(), **change}), message)


def test_configurations_here_are_within_the_bounds() -> None:
    for path in (PACKAGE.parent / "weights").glob("*/config.json"):
        described = json.loads(path.read_text())
        if "config" in described:
            assert Config.from_dict(described["config"])
        DatasetSpec.from_dict(described["dataset"])


# --- names that end in files, pictures, pages and on consoles ---------------------------------------------------------


def test_names_become_stems_of_files() -> None:
    assert [file_stem(name) for name in ("thickness", "shadow_length", "a.b+c-1")] == [
        "thickness", "shadow_length", "a.b+c-1",
    ]  # fmt: skip
    odd = [
        "../x",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a b",
        "a_b ",
        ".",
        "..",
        "",
        "-rf",
        "con",
        "LPT1",
        "a.",
        "Größe",
        "a" * 99,
    ]
    stems = [file_stem(name) for name in odd]
    assert len(set(stems)) == len(odd)
    for stem in stems:
        assert not set(stem) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
        assert (
            stem[0] not in ".-" and not stem.endswith(".") and len(stem) < 100 and stem.upper() not in ("CON", "LPT1")
        )


def test_a_terminal_is_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        warnings.warn("w\x1b]0;x\x07", UserWarning, stacklevel=1)
        raise DataError("a\x1b[2J\n\u202eb")

    with pytest.raises(SystemExit), warnings.catch_warnings():
        warnings.simplefilter("always")
        run_cli(main, [])
    assert capsys.readouterr().err == "warning: w?]0;x?\nerror: a?[2J ?b\n"


def test_a_message_is_one_short_line() -> None:
    assert str(InputError("Größe ✓: 'a  b' is wrong")) == "Größe ✓: 'a  b' is wrong"
    assert str(DataError("a\nb\r\tc\x07\u2028\ud800")) == "a b  c???"
    long = str(DataError("x" * 10**6 + ", 3 are allowed"))
    assert len(long) <= MAX_MESSAGE and long.startswith("xxx") and long.endswith("xxx, 3 are allowed")
    assert str(InputError()) == "" and str(pickle.loads(pickle.dumps(DataError("a")))) == "a"
