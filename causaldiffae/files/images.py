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

from PIL import Image

from causaldiffae.errors import DataError, InputError

MAX_PIXELS: Final = 1 << 26
MAX_SIDE: Final = 1 << 16  # a PNG of 100 bytes can have a row of millions of pixels
LARGE: Final = 1 << 24  # pixels; decoding such an image takes hundreds of megabytes
_TITLES: Final = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}
_ONE_AT_A_TIME: Final = threading.Lock()


@contextlib.contextmanager
def open_image(
    content: bytes, formats: Sequence[str], where: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels, which the body of the `with` statement does.

    Args:
        content: bytes of the file.
        formats: accepted formats, of JPEG, PNG and WEBP.
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
    except Exception:  # Pillow raises various errors for damaged files
        titles = [_TITLES[name] for name in formats]
        listed = " or ".join(part for part in (", ".join(titles[:-1]), titles[-1]) if part)
        raise DataError(f"{lead}expected a {listed} image, got another format or a damaged file") from None


@contextlib.contextmanager
def without_size_warnings() -> Iterator[None]:
    """Silences Pillow's warning about large images in all threads; `open_image` checks the size itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
