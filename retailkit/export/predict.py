"""Classify photos with the model beside this file. It needs numpy, Pillow and onnxruntime, and no retailkit.

    python predict.py photo.jpg another.jpg

Images are resized in numpy, bit by bit as torchvision did in training. Pillow's own resize rounds some pixels to the
next level, which moves probabilities by a few hundredths.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
TURN = Image.Transpose
UPRIGHT = (None, TURN.FLIP_LEFT_RIGHT, TURN.ROTATE_180, TURN.FLIP_TOP_BOTTOM, TURN.TRANSPOSE, TURN.ROTATE_270,
           TURN.TRANSVERSE, TURN.ROTATE_90)  # for EXIF orientation 1 to 8  # fmt: skip


def read(path):
    """Return an image file as (H,W,3) uint8 RGB, upright; transparent parts become white."""
    if not os.path.isfile(path):  # a pipe would never end
        raise ValueError("no such file, or not a regular one")
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()
        turn = UPRIGHT[orientation(image) - 1]
        image = image if turn is None else image.transpose(turn)
        if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits: white is the first level not exceeded
            values = np.nan_to_num(np.asarray(image, dtype=np.float32))
            levels = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
            white = next((level for level in levels if values.max() <= level), levels[-1])
            image = Image.fromarray(np.clip(values / white * 255, 0, 255).astype(np.uint8))
        elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))


def orientation(image):
    """Return the EXIF orientation, 1 where there is none or the EXIF block is broken."""
    try:
        value = image.getexif().get(0x0112, 1)
        value = int(value[0] if isinstance(value, tuple) else value)
    except Exception:
        return 1
    return value if 1 <= value <= 8 else 1


def resize(pixels, height, width):
    """Return pixels (H,W,3) as (height,width,3), bilinear with antialiasing: first along x, then along y."""
    return _along(_along(pixels.swapaxes(0, 1), width).swapaxes(0, 1), height)


def _along(pixels, length):
    """Resize the first axis as torch does for bytes: weights are whole numbers of as many bits as fit into 16."""
    if len(pixels) == length:
        return pixels
    scale, windows = len(pixels) / length, []
    reach = max(scale, 1.0)
    for i in range(length):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), len(pixels))
        weights = np.clip(1 - np.abs((np.arange(first, last) - centre + 0.5) / reach), 0, None)
        windows.append((first, weights / weights.sum()))
    largest, bits = max(weights.max() for _, weights in windows), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    rows = []
    for first, weights in windows:
        whole = np.floor(weights * 2**bits + 0.5)
        part = pixels[first : first + len(whole)].astype(float)
        rows.append(np.floor((np.tensordot(whole, part, 1) + 2 ** (bits - 1)) / 2**bits))
    return np.clip(rows, 0, 255).astype(np.uint8)


def fit(pixels, preparation):
    """Return pixels (H,W,3) as a square (size,size,3), as preprocessing.json says."""
    size, (height, width) = preparation["size"], pixels.shape[:2]
    if preparation["fit"] == "crop":
        short = min(height, width)
        pixels = resize(pixels, *(preparation["short_side"] * side // short for side in (height, width)))
        top, left = (round((side - size) / 2) for side in pixels.shape[:2])
        return pixels[top : top + size, left : left + size]
    if preparation["fit"] == "pad":
        dy, dx = max(width - height, 0), max(height - width, 0)
        around = ((dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2), (0, 0))
        pixels = np.pad(pixels, around, constant_values=preparation["pad_level"])
    return resize(pixels, size, size)


def prepare(path, preparation):
    """Return an image file as the model's input, (1,3,size,size) float32 in [0,1]."""
    return fit(read(path), preparation).transpose(2, 0, 1)[None].astype(np.float32) / 255


def load(folder):
    """Return what preprocessing.json says, and the model in ONNX Runtime; raise ValueError if they do not agree."""
    import onnxruntime

    preparation = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
    # As bytes, so that the model cannot ask for weights in other files of this machine.
    session = onnxruntime.InferenceSession((folder / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    images, probs, size = session.get_inputs()[0], session.get_outputs()[0], preparation["size"]
    if (images.name, images.type, images.shape[1:]) != ("images", "tensor(float)", [3, size, size]):
        raise ValueError(f"the model takes {images.name} {images.type} {images.shape}, not images of size {size}")
    if isinstance(probs.shape[-1], int) and probs.shape[-1] != len(preparation["classes"]):
        raise ValueError(f"{probs.shape[-1]} answers, {len(preparation['classes'])} classes")
    return preparation, session


def main():
    """Print the most probable classes of each photo; the exit code is 1 where a photo cannot be read."""
    here, failed = Path(__file__).parent, False
    parser = argparse.ArgumentParser(description="Classify photos with the model beside this file.")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--top", type=int, default=3, help="how many classes to print")
    given = parser.parse_args()
    try:
        if not all((here / name).is_file() for name in ("model.onnx", "preprocessing.json")):
            raise ValueError("a file is missing")
        preparation, session = load(here)
    except Exception as error:  # a damaged file raises anything
        sys.exit(f"{here}: model.onnx and preprocessing.json cannot be used ({reason(error)}); export the model again")
    for photo in given.photos:
        try:
            (probs,) = session.run(None, {"images": prepare(photo, preparation)})[0]
        except Exception as error:
            print(f"{photo}: cannot be read ({reason(error)}); replace or leave it out", file=sys.stderr)
            failed = True
            continue
        best = np.argsort(-probs, kind="stable")[: given.top]
        print(f"{photo}: " + ", ".join(f"{preparation['classes'][k]} {probs[k]:.4f}" for k in best))
    sys.exit(failed)


def reason(error):
    """Return in one line what went wrong."""
    return " ".join(str(error).split())[:200] or type(error).__name__


if __name__ == "__main__":
    main()
