"""Classify photos with the model beside this file. It needs numpy, Pillow and onnxruntime, and no retailkit.

    python predict.py photo.jpg another.jpg
    python predict.py --model model.int8.onnx --top 3 photo.jpg

Pictures are resized here in numpy, bit by bit as in training: Pillow's own resize rounds some pixels to the next
level, and a model that is not sure of itself can change its answer over that.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path):
    """Return a picture file as (H,W,3) uint8 RGB, upright; transparency goes onto white."""
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":
            wide = np.asarray(picture, dtype=np.float32)
            top = 65535.0 if wide.max() > 255 else 255.0
            picture = Image.fromarray(np.clip(wide / top * 255, 0, 255).astype(np.uint8))
        elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.array(picture.convert("RGB"))


def resize(pixels, height, width):
    """Return pixels (H,W,3) resized to (height,width,3), bilinear with antialiasing: columns first, then rows."""
    return _along(_along(pixels.swapaxes(0, 1), width).swapaxes(0, 1), height)


def _along(pixels, length):
    """Resize the first axis as torch does for bytes: weights are whole numbers of as many bits as fit into 16."""
    if len(pixels) == length:
        return pixels
    scale, taps = len(pixels) / length, []
    reach = max(scale, 1.0)
    for i in range(length):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), len(pixels))
        weights = np.clip(1 - np.abs((np.arange(first, last) - centre + 0.5) / reach), 0, None)
        taps.append((first, weights / weights.sum()))
    largest, bits = max(weights.max() for _, weights in taps), 0
    while bits < 22 and int(0.5 + largest * 2 ** (bits + 1)) < 2**15:
        bits += 1
    rows = []
    for first, weights in taps:
        whole = np.floor(weights * 2**bits + 0.5)
        part = pixels[first : first + len(whole)].astype(float)
        rows.append(np.floor((np.tensordot(whole, part, 1) + 2 ** (bits - 1)) / 2**bits))
    return np.clip(rows, 0, 255).astype(np.uint8)


def fit(pixels, told):
    """Return pixels (H,W,3) as (side,side,3), in the way that preprocessing.json tells."""
    side, (height, width) = told["side"], pixels.shape[:2]
    if told["fit"] == "crop":
        short = told["short_side"]
        if height <= width:
            pixels = resize(pixels, short, int(short * width / height))
        else:
            pixels = resize(pixels, int(short * height / width), short)
        top, left = (round((n - side) / 2) for n in pixels.shape[:2])
        return pixels[top : top + side, left : left + side]
    if told["fit"] == "pad":
        dy, dx = max(width - height, 0), max(height - width, 0)
        around = ((dy // 2, dy - dy // 2), (dx // 2, dx - dx // 2), (0, 0))
        pixels = np.pad(pixels, around, constant_values=told["pad_level"])
    return resize(pixels, side, side)


def prepare(path, told):
    """Return a picture file as the model's input, (1,3,side,side) float32 in [0,1]."""
    return fit(read(path), told).transpose(2, 0, 1)[None].astype(np.float32) / 255


def main():
    """Print the most probable classes of each photo."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description="Classify photos with the model beside this file.")
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--model", default="model.onnx", help="model.onnx or model.int8.onnx")
    parser.add_argument("--top", type=int, default=3, help="how many classes to print")
    given = parser.parse_args()
    told = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(str(here / given.model), providers=["CPUExecutionProvider"])
    for photo in given.photos:
        (probs,) = session.run(None, {"images": prepare(photo, told)})[0]
        best = np.argsort(-probs, kind="stable")[: given.top]
        print(f"{photo}: " + ", ".join(f"{told['classes'][k]} {probs[k]:.4f}" for k in best))


if __name__ == "__main__":
    main()
