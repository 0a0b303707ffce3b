"""Mutations of valid files: random ones (bits, cuts, splices) and structured ones (headers, sizes, nesting)."""

import contextlib
import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

SIZES = (0, 1, 2, 7, 255, 256, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**48, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    b"", b"-1", b"0", b"1e999", b"nan", b"NaN", b"-inf", b"Infinity", b"9" * 30, b"9" * 5000, b"-0", b"0x10", b"1_0",
    b"true", b"null", b"~", b"../../etc/passwd", b"/etc/passwd", b"C:\\x", b"..\\..\\x", b"\\\\host\\x", b"a/b", b"\0",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"\r\n", b"\n", b",", b",,,,", b'"', b"'", b"&a", b"*a",
    b"!!python/", b"<<: *a", b"[" * 300, b"{" * 300, b"((((", b"- " * 200, b"? ", b"|", b"%s%n", b"<script>", b"$x^",
    b"=", b"A" * 70000, b"file", b"split", b"names", b"edges", b"config: c.yaml", b"->", b"--", b"subgraph", b"/*",
    b"CON", b"\x1b[2J",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 10**30, 1e308, -1e-320, 0.5, "", "x", "../x", "<script>", "9" * 400, [],
    {}, [[]], [1], {"$kind": "tensor", "name": "x"}, {"$kind": "x"}, {"mean": "x"}, "A" * 5000, "\0", "\ud800", "%d",
    "16,8", "1," * 100, [[[[[[[[]]]]]]]], "nan", "float64", [2**40], [-1], 100_000, 4096, 65_536,
)  # fmt: skip

DTYPES = ("|O", "<f8", "|S0", "|S999999999", "|V4", "<U9", "<M8[s]", "|b1", "<c16", ">f8", "<u1", "x")
SHAPES = ("()", "(0,)", "(" * 200, "(1.5,)", "(True,)", "(1,)*9", "[3]", "3")


def mutate_bytes(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Applies one random mutation; `other` is a file to splice from."""
    data = bytearray(content)
    kind, place = rng.randrange(10), rng.randrange(len(data) + 1)
    length = int(min(rng.expovariate(1 / 12), 4095)) + 1
    if kind == 0 and data:
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[place : place + 1] = bytes((rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256))),))
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        del data[place : place + length]
    elif kind == 4:
        data[place:place] = data[place : place + length] * rng.choice((1, 2, 50))
    elif kind == 5:
        data[place:place] = rng.choice(WORDS)
    elif kind == 6:
        start = rng.randrange(len(other) + 1)
        data[place : place + rng.choice((0, length))] = other[start : start + length]
    elif kind == 7:
        width, order = rng.choice("BHIQ"), rng.choice("<>")
        size = struct.calcsize(width)
        value = rng.choice(SIZES) % (1 << 8 * size)
        data[place : place + size] = struct.pack(order + width, value)
    elif kind == 8:
        data += bytes(rng.randrange(256) for _ in range(length))
    else:
        data = bytearray(_mutate_number(bytes(data), rng))
    return bytes(data)


def _mutate_number(content: bytes, rng: random.Random) -> bytes:
    """Replaces a number or a word in a text."""
    found = list(re.finditer(rb"[-+]?[0-9][0-9.e+-]*|[A-Za-z_]+", content[:100_000]))
    if not found:
        return content + rng.choice(WORDS)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice((*WORDS, *(b"%d" % size for size in SIZES))) + content[one.end() :]


def _json(content: bytes, rng: random.Random) -> bytes:
    value = json.loads(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, inner in items:
            places.append((node, key))
            walk(inner)

    walk(value)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not places:
            break
        node, key = rng.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            kind = rng.randrange(6)
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, dict):
                node[rng.choice(("", "x", "../x", "a" * 300, "<script>", "\n", "$kind"))] = node.pop(key)
            elif kind == 2 and isinstance(node[key], list):
                node[key] = node[key] * rng.choice((2, 50))
            elif kind == 3:
                node[key] = rng.choice((node[key], rng.choice(places)[0]))
                json.dumps(value)  # refuses a cycle
            elif kind == 4 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
                node[key] = rng.choice((-node[key], node[key] + 1, node[key] * 1000, float(node[key]), str(node[key])))
            else:
                node[key] = rng.choice(VALUES)
    text = json.dumps(value)
    if rng.random() < 0.1:
        deep = rng.choice((20, 200, 900, 3000))
        text = text.replace("1", "[" * deep + "]" * deep, 1)
    if rng.random() < 0.1:
        text = text.replace(":", rng.choice((': NaN, "x":', ': 1e999, "y":', ':-Infinity, "z":')), 1)
    return text.encode("utf-8", "surrogatepass")


def _zip(content: bytes, rng: random.Random) -> bytes:
    """Mutates a member and writes valid checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(entry.filename, archive.read(entry), entry.compress_type) for entry in archive.infolist()]
    number = rng.randrange(len(members))
    name, data, how = members[number]
    kind = rng.randrange(8)
    if kind == 0:
        name = rng.choice(("../x.npy", "", "a" * 300, members[0][0], "imgs", "x/data.pkl"))
    elif kind == 1:
        how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif kind == 2:
        data = b"\0" * rng.choice((0, 1, 1 << 16, 1 << 22))
        how = zipfile.ZIP_DEFLATED
    elif kind < 6 and data[:6] == b"\x93NUMPY":
        data = _npy(data, rng)
    else:
        data = mutate_bytes(data, rng.choice(members)[1], rng)
    members[number] = (name, data, how)
    if rng.random() < 0.05:
        del members[rng.randrange(len(members))]
    buffer = io.BytesIO()
    with contextlib.suppress(UserWarning), zipfile.ZipFile(buffer, "w") as archive:
        for name, data, how in members:
            archive.writestr(zipfile.ZipInfo(name), data, how)
    written = buffer.getvalue()
    if rng.random() < 0.15:  # wrong sizes in the directory
        at = written.rfind(b"PK\x01\x02")
        lie = rng.choice(SIZES) % 2**32
        if at >= 0:
            written = written[: at + 20] + struct.pack("<I", lie) * rng.choice((1, 2)) + written[at + 28 :]
    return written


def _npy(data: bytes, rng: random.Random) -> bytes:
    """Mutates the header's dtype, order or shape, and keeps the values."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin-1").rstrip()
    size = str(rng.choice((*SIZES, -1, -(2**40))))
    kind = rng.randrange(5)
    if kind == 0:
        header = re.sub(r"\(\d+", "(" + size, header)
    elif kind == 1:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(DTYPES)}'", header)
    elif kind == 2:
        header = header.replace("False", rng.choice(("True", "0", "None", "[]")))
    elif kind == 3:
        shape = rng.choice((*SHAPES, f"({size}, {size})"))
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': {shape}", header)
    else:
        header = mutate_bytes(header.encode("latin-1"), b"", rng).decode("latin-1")
    raw = header.encode("latin-1", "replace") + b"\n"
    return data[:8] + struct.pack("<H", len(raw) % 65536) + raw + data[10 + length :]


def _gzip(content: bytes, rng: random.Random) -> bytes:
    inner = gzip.decompress(content)
    if rng.random() < 0.1:
        inner = inner[: rng.randrange(20)] + b"\0" * rng.choice((1 << 10, 1 << 20, 1 << 23))
    else:
        inner = mutate_bytes(inner, inner, rng)
    return gzip.compress(inner, rng.choice((1, 9))) * rng.choice((1, 1, 1, 2))


def _png(content: bytes, rng: random.Random) -> bytes:
    """Mutates a chunk and writes a valid checksum."""
    chunks, place = [], 8
    while place + 12 <= len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    if kind == b"IHDR" and rng.random() < 0.7:
        sizes = struct.pack(">II", *(rng.choice((1, 8, 100, 5000, 9000, 70000, *SIZES)) % 2**32 for _ in range(2)))
        data = sizes + bytes((rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 7)), 0, 0, rng.randrange(2)))
    elif kind == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):
            data = zlib.compress(mutate_bytes(zlib.decompress(data), b"", rng))
    else:
        data = mutate_bytes(data, data, rng)
    if rng.random() < 0.3:
        extra = rng.choice((b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"PLTE", b"acTL", b"fcTL", b"gAMA"))
        bomb = b"a\0\0" + zlib.compress(b"\0" * (1 << 20))
        chunks.insert(rng.randrange(len(chunks) + 1), (extra, rng.choice((bomb, b"", b"\0" * 30, data[:500]))))
    else:
        chunks[number] = (kind, data)
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return content[:8] + b"".join(packed)


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + length], rng)
    if rng.random() < 0.3:
        header = _mutate_number(content[8 : 8 + length], rng)
    if rng.random() < 0.05:
        return struct.pack("<Q", rng.choice(SIZES) % 2**64) + content[8:]
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _csv(content: bytes, rng: random.Random) -> bytes:
    rows = [line.split(b",") for line in content.split(b"\n")]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice((*WORDS, b"im/0.png", b"test", b"train", b"1", b"2.5"))
    if rng.random() < 0.2:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
    if rng.random() < 0.1:
        rng.choice(rows).append(rng.choice(WORDS))
    return b"\n".join(b",".join(row) for row in rows)


def mutate_file(name: str, content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Applies one structured mutation if the format is known, or a random one."""
    structured: Callable[[bytes, random.Random], bytes] | None = None
    if name.endswith(".json"):
        structured = _json
    elif content[:4] == b"PK\x03\x04":
        structured = _zip
    elif content[:6] == b"\x93NUMPY":
        structured = _npy
    elif content[:2] == b"\x1f\x8b":
        structured = _gzip
    elif content[:8] == b"\x89PNG\r\n\x1a\n":
        structured = _png
    elif name.endswith(".safetensors"):
        structured = _safetensors
    elif name.endswith(".csv"):
        structured = _csv
    if structured is not None and rng.random() < 0.7:
        with contextlib.suppress(Exception):  # an earlier mutation may have broken the format
            return structured(content, rng)
    return mutate_bytes(content, other, rng)


def mutate(files: dict[str, bytes], others: dict[str, bytes], rng: random.Random, names: bool) -> dict[str, bytes]:
    """Applies one to four mutations to the files and, with `names`, to their names."""
    changed = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name = rng.choice(sorted(changed))
        if names and rng.random() < 0.3:
            folder, slash, base = name.rpartition("/")
            new = mutate_bytes(base.encode(), b"-_99999999.png", rng).decode("utf-8", "ignore")
            new = re.sub(r"[/\0]", "_", new)[:80]
            if new not in ("", ".", "..") and folder + slash + new not in changed:
                changed[folder + slash + new] = changed.pop(name)
            continue
        other = rng.choice(list(others.values()))
        changed[name] = mutate_file(name, changed[name], other, rng)
        if rng.random() < 0.01 and len(changed) > 1:
            del changed[name]
    return changed
