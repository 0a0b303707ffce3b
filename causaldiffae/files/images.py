"""Untrusted image files: named formats, the header first, and a limit on pixels.

A few kilobytes can decompress to gigabytes, and every format that Pillow knows is one more decoder that a file may
choose. The caller therefore names the formats, the declared size is compared with a limit before a pixel is decoded,
and large images are decoded one at a time across threads.
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
MAX_SIDE: Final = 1 << 16  # a PNG of 100 bytes can be one line of millions of pixels
LARGE: Final = 1 << 24  # pixels; decoding such an image takes hundreds of megabytes
_TITLES: Final = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}
_ONE_AT_A_TIME: Final = threading.Lock()


@contextlib.contextmanager
def open_image(
    content: bytes, formats: Sequence[str], where: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """Opens an image without decoding its pixels; the body of the `with` statement decodes them.

    Raises:
        DataError: starting with `where`, if it is not one of `formats` (of JPEG, PNG, WEBP), damaged, larger than
            `max_pixels`, or does not fit into memory. An `InputError` of the body passes unchanged.
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
        raise DataError(f"{lead}expected at most {max_pixels} pixels, got far more") from None
    except InputError:
        raise
    except MemoryError:
        raise DataError(f"{lead}the image does not fit into memory") from None
    except Exception:  # Pillow's readers raise many kinds for damaged files
        titles = [_TITLES[name] for name in formats]
        listed = " or ".join(part for part in (", ".join(titles[:-1]), titles[-1]) if part)
        raise DataError(f"{lead}cannot be read as a {listed} image") from None


@contextlib.contextmanager
def without_size_warnings() -> Iterator[None]:
    """Silences Pillow's warning about large images, which `open_image` refuses itself, for all threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
