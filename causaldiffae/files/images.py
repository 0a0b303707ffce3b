"""Image files that may come from strangers: named formats, the header first, and a limit on pixels.

A few kilobytes can unpack to gigabytes ("decompression bomb"), and every format that Pillow knows is one more decoder
that a stranger may choose. So the caller names the formats, the size that the header declares is compared with a limit
before a pixel is decoded, and large images are decoded one at a time, however many threads there are. Whatever is
wrong is a `DataError` that says "it ..." behind the caller's words.
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
MAX_SIDE: Final = 1 << 16  # 100 bytes of PNG may be a line of millions, which grows in all its length when resized
LARGE: Final = 1 << 24  # pixels; with all copies on the way such an image takes some hundred megabytes
_TITLES: Final = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP"}
_ONE_AT_A_TIME: Final = threading.Lock()


@contextlib.contextmanager
def open_image(
    content: bytes, formats: Sequence[str], where: str = "", max_pixels: int = MAX_PIXELS
) -> Iterator[Image.Image]:
    """An image whose header was read and whose pixels were not; the body loads and converts them.

    Args:
        content: the file's bytes.
        formats: those that are allowed, of JPEG, PNG and WEBP.
        where: what messages begin with, "file.png: "; a `DataError` of the body is passed on as it is.
        max_pixels: width times height.

    Raises:
        DataError: if it is none of the formats, damaged, or larger; or does not fit into the memory.
    """
    lead = f"{where}: " if where else ""
    try:
        with contextlib.ExitStack() as stack:
            picture = stack.enter_context(Image.open(io.BytesIO(content), formats=tuple(formats)))
            width, height = picture.size
            if width * height > max_pixels:
                raise DataError(f"{lead}it is {width}x{height}, more than {max_pixels} pixels are refused")
            if max(width, height) > MAX_SIDE:
                raise DataError(f"{lead}it is {width}x{height}, sides of at most {MAX_SIDE} pixels are allowed")
            if width * height > LARGE:
                stack.enter_context(_ONE_AT_A_TIME)
            yield picture
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(f"{lead}it unpacks to far too many pixels, {max_pixels} are allowed") from None
    except InputError:
        raise
    except MemoryError:
        raise DataError(f"{lead}it does not fit into the memory") from None
    except Exception:  # a damaged file makes Pillow's readers raise nearly anything
        raise DataError(f"{lead}it cannot be read as a {_listed(formats)} image") from None


@contextlib.contextmanager
def without_size_warnings() -> Iterator[None]:
    """Pillow's warning of large images says what `open_image` decides; it is set here for all threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _listed(formats: Sequence[str]) -> str:
    titles = [_TITLES[name] for name in formats]
    return " or ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
