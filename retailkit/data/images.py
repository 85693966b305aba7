"""The one way to read photos and masks: known formats, bounded sizes, upright, eight bits, on white.

No file starts a foreign program (Pillow hands EPS to Ghostscript), and none is decoded before its size is known.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from retailkit.cache import open_file
from retailkit.config import DataError, UserError

# Of a broken EXIF block, whose pixels are sound; the message names no file.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_PIXELS = 64_000_000  # reading one takes up to 25 bytes a pixel, so that all is done in two gigabytes
MAX_SIDE = 16_384  # `pad` makes a square of the longer side
MAX_RATIO = 100  # of the longer to the shorter side: `crop` enlarges the shorter one
LIMIT = f"at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side"
ORIENTATION = 0x0112  # EXIF tag
TURN = Image.Transpose
UPRIGHT = (None, TURN.FLIP_LEFT_RIGHT, TURN.ROTATE_180, TURN.FLIP_TOP_BOTTOM, TURN.TRANSPOSE, TURN.ROTATE_270,
           TURN.TRANSVERSE, TURN.ROTATE_90)  # for EXIF orientation 1 to 8  # fmt: skip

Source = str | Path | BytesIO


def file_beside(folder: Path, name: str) -> Path:
    """Return the file that a table in `folder` names, also with Windows' backslashes or macOS' split accents."""
    written = [folder / name, folder / name.replace("\\", "/")]
    ways = [Path(unicodedata.normalize(form, str(path))) for path in written for form in ("NFC", "NFD")]
    return next(filter(os.path.exists, [*written, *ways]), written[0])  # False also where a name is too long


def files_beside(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the files that a table in `folder` names, by these names, without those that are not there.

    See `file_beside`. Each folder is listed once, which costs less than asking for each of its files.
    """
    found, listed = {}, {}
    for name in names:
        head, slash, tail = name.replace("\\", "/").rpartition("/")
        if (head := head + slash) not in listed:
            listed[head] = _listed(file_beside(folder, head))
        if tail in listed[head]:
            found[name] = listed[head][tail]
        elif os.path.isfile(file := file_beside(folder, name)):  # capitals may not matter, and names may hold a \
            found[name] = str(file)
    return found


def _listed(folder: Path) -> dict[str, str]:
    """Return the files of a folder by their names, also with joined accents."""
    files: list[str] = []
    with suppress(OSError, ValueError), os.scandir(folder) as entries:
        files += (entry.name for entry in entries if entry.is_file())
    start = str(folder / "x")[:-1]
    joined = {unicodedata.normalize("NFC", name): start + name for name in files}
    return joined | {name: start + name for name in files}


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """Yield an image file, or the content of an upload, with a sound header; its pixels are decoded when asked for.

    Raises:
        DataError: the file is missing, of another format, too large, too narrow, or cannot be decoded (also when that
            shows inside the block).
    """
    uploaded = isinstance(source, BytesIO)
    name = "the image" if uploaded else source
    try:
        door = nullcontext(source) if uploaded else open_file(source)
        with door as stream, Image.open(stream, formats=FORMATS) as image:
            long, short = max(image.size), min(image.size)
            if long * short > MAX_PIXELS or long > MAX_SIDE:
                raise DataError(f"{name}: {image.width} x {image.height} pixels are too many; use {LIMIT}")
            if long > MAX_RATIO * short:
                raise DataError(f"{name}: {image.width} x {image.height} pixels are too narrow; crop it")
            yield image
    except DataError:
        raise
    except UserError as error:
        raise DataError(f"{error}, or drop its row") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: too many pixels; use {LIMIT}") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image that can be read; replace the file or drop its row") from None
    except Exception as error:  # decoders raise anything on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}); replace the file or drop its row") from None


def read_image(source: Source) -> np.ndarray:
    """Read a photo as (H,W,3) uint8 RGB, upright, transparency on white; see `opened` for errors."""
    with opened(source) as image:
        return _to_rgb(_upright(image))


def image_size(source: Source) -> tuple[int, int]:
    """Return the width and height of the upright image, from its header; see `opened` for errors."""
    with opened(source) as image:
        turned = image.format != "TIFF" and _orientation(image) >= 5  # Pillow swaps the sides of a TIFF by itself
        return image.size[::-1] if turned else image.size


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 to 8; 1 where the tag is missing or its block is broken."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        value = int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # the pixels are sound, whatever the metadata says
        return 1
    return value if 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # turns a TIFF and forgets its tag
    turn = UPRIGHT[_orientation(image) - 1]
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return an image of any mode as (H,W,3) uint8 RGB; white is the first usual level that no pixel exceeds."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False)
        levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((level for level in levels if values.max() <= level), levels[-1])
        values /= white
        values *= 255
        image = Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
    elif _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def read_mask(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a product mask as (H,W) bool: a pixel of at least half the white level is product.

    In a cut-out (an image that is transparent in places), what is opaque is product; in an image that holds only 0 and
    1, the ones; in a `.npy` file with an array (H,W), anything above 0.

    Raises:
        DataError: the file cannot be read, or its size differs from its image's `shape` (H,W).
    """
    if Path(path).suffix == ".npy":
        mask = _read_array(path) > 0
    else:
        with opened(path) as image:
            mask = _to_mask(_upright(image))
    if mask.shape != tuple(shape):
        raise DataError(f"{path}: mask of {mask.shape[1]}x{mask.shape[0]} for an image of {shape[1]}x{shape[0]}")
    return mask


def _to_mask(image: Image.Image) -> np.ndarray:
    if _is_transparent(image):
        opacity = np.asarray(image.convert("RGBA"))[..., 3]
        if opacity.min() < opacity.max():
            return opacity >= 128
    level = _to_rgb(image)[..., 0]
    return level >= (128 if level.max() > 1 else 1)


def _read_array(path: str | Path) -> np.ndarray:
    try:
        with open_file(path, limit=4 * MAX_PIXELS) as file:
            array = np.lib.format.read_array(BytesIO(file.read()), allow_pickle=False)
    except UserError as error:
        raise DataError(f"{error}, or drop its row") from None
    except Exception as error:  # NumPy raises anything on broken headers
        raise DataError(f"{path}: not an array ({type(error).__name__}); replace the file or drop its row") from None
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {array.dtype} of shape {array.shape}; replace it by numbers of shape (H, W)")
    return array
