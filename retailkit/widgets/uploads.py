"""Photos from outside: checked before a pixel is decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from retailkit.config import UserError
from retailkit.data.images import read_image

MEGABYTES = 9  # a Jupyter server hands on messages of 10
MEGAPIXELS = 60  # a phone takes 12 to 50
SMALLEST = 32  # pixels a side
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def checked(content: bytes, name: str) -> str:
    """Make sure, by its content and not its name, that a file is a picture of a sane size; nothing is decoded.

    Args:
        content: the whole file.
        name: of the file, for messages.

    Returns:
        Its kind, one of `FORMATS`.

    Raises:
        UserError: empty, too large, no picture, of a kind that is not read, or of too many or too few pixels.
    """
    if not content:
        raise UserError(f"{name}: the file is empty; choose another one")
    if len(content) > MEGABYTES * 1_000_000:
        size = f"{len(content) / 1e6:.1f} MB"
        raise UserError(f"{name}: {size} is more than {MEGABYTES} MB; make the photo smaller or crop it to the product")
    try:
        with Image.open(io.BytesIO(content)) as file:  # reads the header only
            kind, (width, height) = file.format, file.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise UserError(f"{name}: this is not a picture that can be read; save it as JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: too many pixels; use at most {MEGAPIXELS} megapixels") from None
    if kind not in FORMATS:
        raise UserError(f"{name}: {kind} pictures are not read; save it as JPEG or PNG")
    if width * height > MEGAPIXELS * 1_000_000:
        raise UserError(f"{name}: {width} x {height} pixels are too many; use at most {MEGAPIXELS} megapixels")
    if min(width, height) < SMALLEST:
        raise UserError(f"{name}: {width} x {height} pixels are too few; use at least {SMALLEST} a side")
    return kind


def decoded(content: bytes, name: str) -> np.ndarray:
    """Check a photo and return its pixels, (H,W,3) uint8, upright.

    Args:
        content: the whole file.
        name: of the file, for messages.

    Raises:
        UserError: see `checked`; or the file is cut off.
    """
    checked(content, name)
    try:
        return read_image(io.BytesIO(content))
    except UserError:
        raise UserError(f"{name}: the picture is damaged; take or save it again") from None
