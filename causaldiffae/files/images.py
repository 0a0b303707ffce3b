"""Untrusted image files.

A few kilobytes can decompress to gigabytes, and every format supported by Pillow adds a decoder that a file could
exploit. Only formats named by the caller are decoded, the declared size is checked before decoding, and large images
are decoded one at a time across threads.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from PIL import Image, UnidentifiedImageError

from causaldiffae.errors import DataError, InputError

MAX_PIXELS: Final = 1 << 26
MAX_SIDE: Final = 1 << 16  # a PNG of 100 bytes can have a row of millions of pixels
LARGE: Final = 1 << 24  # pixels; decoding such an image takes hundreds of megabytes
_TITLES: Final = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "TIFF": "TIFF", "BMP": "BMP", "GIF": "GIF"}
_SIGNATURES: Final = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (128, b"DICM", "DICOM"),
    (344, b"n+1\0", "NIfTI"),
    (344, b"ni1\0", "NIfTI"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II+\0", "BigTIFF"),
    (0, b"MM\0+", "BigTIFF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"PK\3\4", "zip"),
    (0, b"%PDF", "PDF"),
    (0, b"version https://git-lfs", "Git LFS pointer"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<!doctype html", "HTML"),
    (0, b"<html", "HTML"),
)
"""Offset and content of the first bytes of file formats; text in lower case."""
_NO_IMAGES: Final = ("gzip", "zip", "PDF", "XML", "HTML", "HDF5", "NumPy")
_ONE_AT_A_TIME: Final = threading.Lock()


@contextlib.contextmanager
def open_image(
    content: bytes, formats: Sequence[str], where: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels, which the body of the `with` statement does.

    Args:
        content: bytes of the file.
        formats: accepted formats, of JPEG, PNG, WEBP, TIFF, BMP and GIF.
        where: prefix of error messages.
        max_pixels: maximum number of pixels.

    Raises:
        DataError: If the image has another format, is damaged or too large. An `InputError` of the body propagates.
    """
    lead = f"{where}: " if where else ""
    try:
        with contextlib.ExitStack() as stack:
            image = stack.enter_context(Image.open(io.BytesIO(content), formats=tuple(formats)))
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(f"{lead}expected at most {max_pixels} pixels, got {width}x{height}")
            if max(width, height) > MAX_SIDE:
                raise DataError(f"{lead}expected sides of at most {MAX_SIDE} pixels, got {width}x{height}")
            if width * height > LARGE:
                stack.enter_context(_ONE_AT_A_TIME)
            yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{lead}expected at most {max_pixels} pixels, got many more") from None
    except InputError:
        raise
    except MemoryError:
        raise DataError(f"{lead}expected an image that fits into memory") from None
    except Exception as error:  # Pillow raises various errors for damaged files
        titles = [_TITLES[name] for name in formats]
        listed = " or ".join(part for part in (", ".join(titles[:-1]), titles[-1]) if part)
        raise DataError(f"{lead}expected a {listed} image, got {_describe_refused(content, titles, error)}") from None


def format_title(content: bytes) -> str:
    """Returns the format of a file by its first bytes, such as "PNG" or "DICOM"; "" if it is unknown."""
    for offset, signature, title in _SIGNATURES:
        if content[offset : offset + len(signature)] in (signature, signature.upper()):
            return title
    start = content[:64].lower().lstrip()
    return next((title for _, signature, title in _SIGNATURES[-4:] if start.startswith(signature)), "")


def _describe_refused(content: bytes, titles: Sequence[str], error: Exception) -> str:
    """Describes a file that could not be decoded as one of the formats in `titles`."""
    title = format_title(content)
    if not content:
        return "an empty file"
    if title == "Git LFS pointer":
        return "a Git LFS pointer; run git lfs pull"
    if title == "TIFF" and isinstance(error, UnidentifiedImageError):
        return "a damaged TIFF file or one of an unsupported kind; convert it to PNG"
    if title in titles:
        damage = "truncated" if _is_truncated(content, title) or "truncated" in str(error) else "damaged"
        return f"a {damage} {title} file of {len(content)} bytes"
    if title in _NO_IMAGES:
        return f"a file of format {title}"
    if title:
        return f"{title}; convert it to {'PNG' if 'PNG' in titles else titles[0]}"
    return "another format or a damaged file"


def _is_truncated(content: bytes, title: str) -> bool:
    """Whether the end of a file of a known format is missing."""
    if title in ("WebP", "BMP"):  # the header has the length of the file
        offset, added = (4, 8) if title == "WebP" else (2, 0)
        return len(content) < int.from_bytes(content[offset : offset + 4], "little") + added
    ends = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b";"}
    return title in ends and ends[title] not in content[-(1 << 16 if title == "JPEG" else 16) :]


@contextlib.contextmanager
def without_size_warnings() -> Iterator[None]:
    """Silences Pillow's warning about large images in all threads; `open_image` checks the size itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
