"""Images open in named formats, and within limits on pixels."""

import io
import struct
import threading
import warnings
import zlib
from typing import Any

import pytest
from PIL import Image

from causaldiffae.errors import DataError
from causaldiffae.files import images
from causaldiffae.files.images import open_image


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG header that declares a size, without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_an_image_is_opened() -> None:
    with open_image(encoded(), ("PNG",)) as opened:
        assert opened.size == (9, 7)


@pytest.mark.parametrize(
    ("content", "formats", "options", "message"),
    [
        (
            encoded("GIF"),
            ("JPEG", "PNG", "WEBP"),
            {},
            "expected a JPEG, PNG or WebP image, got GIF; convert it to PNG",
        ),
        (
            encoded("JPEG"),
            ("PNG",),
            {"where": "a.png"},
            "a.png: expected a PNG image, got JPEG; convert it to PNG",
        ),
        (encoded("PNG"), ("JPEG",), {}, "expected a JPEG image, got PNG; convert it to JPEG"),
        (encoded()[:45], ("PNG",), {}, "expected a PNG image, got a truncated PNG file of 45 bytes"),
        (
            encoded()[:40] + b"?" + encoded()[41:],
            ("PNG",),
            {},
            "expected a PNG image, got a damaged PNG file of 69 bytes",
        ),
        (encoded("JPEG")[:-30], ("JPEG",), {}, "expected a JPEG image, got a truncated JPEG file of .* bytes"),
        (encoded("BMP")[:-9], ("BMP",), {}, "expected a BMP image, got a truncated BMP file of .* bytes"),
        (encoded("GIF")[:-9], ("GIF",), {}, "expected a GIF image, got a truncated GIF file of .* bytes"),
        (encoded("WEBP")[:-9], ("WEBP",), {}, "expected a WebP image, got a truncated WebP file of .* bytes"),
        (encoded("TIFF")[:-90], ("TIFF",), {}, "expected a TIFF image, got a .*TIFF file.*"),
        (
            bytes(128) + b"DICM" + bytes(9),
            ("PNG", "TIFF"),
            {},
            "expected a PNG or TIFF image, got DICOM; convert it to PNG",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            ("PNG",),
            {},
            "expected a PNG image, got a Git LFS pointer; run git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>", ("PNG",), {}, "expected a PNG image, got a file of format HTML"),
        (b"", ("PNG",), {}, "expected a PNG image, got an empty file"),
        (b"hello", ("PNG",), {}, "expected a PNG image, got another format or a damaged file"),
        (encoded(), ("PNG",), {"max_pixels": 62}, "expected at most 62 pixels, got 9x7"),
        (bomb(30_000, 30_000), ("PNG",), {}, "expected at most 67108864 pixels, got many more"),
        (bomb(9_000, 9_000), ("PNG",), {}, "expected at most 67108864 pixels, got 9000x9000"),
        (bomb(5, 70_000), ("PNG",), {}, "expected sides of at most 65536 pixels, got 5x70000"),
    ],
)
def test_other_formats_and_sizes_are_refused(content: bytes, formats: Any, options: Any, message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=f"^{message}$"), open_image(content, formats, **options) as opened:
            opened.load()


def test_errors_of_the_body_pass() -> None:
    with pytest.raises(DataError, match="^mine$"), open_image(encoded(), ("PNG",)):
        raise DataError("mine")


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGE", 10)
    entered = threading.Event()

    def read() -> None:
        with open_image(encoded(), ("PNG",)):
            entered.set()

    other = threading.Thread(target=read)
    with open_image(encoded(), ("PNG",)):
        other.start()
        assert not entered.wait(0.1)
    other.join()
    assert entered.is_set()
