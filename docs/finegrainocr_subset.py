"""Copy a subset of FineGrainOCR out of its zip of 53.7 GB, which is read in place.

    python docs/finegrainocr_subset.py FineGrainOCR.zip finegrainocr --per-class 100 50 --long-edge 512

The photos of a class are drawn as by the authors' script: names sorted, shuffled by `random.Random(0)`, the first n.
`--long-edge` makes photos smaller and scales the corners of their words. Run again, it goes on where it stopped.
"""

import argparse
import io
import json
import random
import zipfile
from collections import defaultdict
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from retailkit.data.finegrainocr import place
from retailkit.data.images import opened

LIMIT = 1 << 27  # bytes of a file


def drawn(names, per_class):
    """Yield the places of the chosen photos, with the files of each photo and of its words in the archive."""
    files = {found: name for name in names if (found := place(name))}
    classes = defaultdict(list)
    for found in files:
        if found.kind == "image" and found.split in per_class:
            classes[found.split, found.label].append(found)
    for (split, _), photos in sorted(classes.items()):
        photos.sort(key=lambda photo: Path(files[photo]).name)
        random.Random(0).shuffle(photos)
        for photo in photos[: per_class[split]]:
            yield photo, files[photo], files.get(photo._replace(kind="text"))


def smaller(content, words, long_edge):
    """Return a JPEG of at most `long_edge` pixels a side, and its words with their corners in its pixels."""
    with opened(io.BytesIO(content)) as image:
        width, height = image.size
        if max(width, height) <= long_edge:
            return content, words
        image.thumbnail((long_edge, long_edge), Image.Resampling.LANCZOS)
    for entry in words:
        for corner in entry.get("bounding_poly", {}).get("vertices", []):
            corner["x"] = round(corner.get("x", 0) * image.width / width, 2)
            corner["y"] = round(corner.get("y", 0) * image.height / height, 2)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue(), words


def main():
    """Copy the subset."""
    parser = argparse.ArgumentParser(description="Copy a subset of FineGrainOCR out of its zip.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("root", type=Path, help="folder to write to")
    parser.add_argument("--per-class", type=int, nargs=2, default=(100, 50), metavar=("TRAIN", "VAL"))
    parser.add_argument("--long-edge", type=int, help="longest side in pixels; by default photos keep their size")
    given = parser.parse_args()
    with zipfile.ZipFile(given.archive) as archive:
        chosen = list(drawn(archive.namelist(), dict(zip(("train", "val"), given.per_class, strict=True))))
        for photo, image_file, text_file in tqdm(chosen):
            name = f"{photo.split}/{photo.label}/{photo.stem}"
            image, text = given.root / "Images" / f"{name}.jpg", given.root / "Text" / f"{name}.json"
            if image.is_file():
                continue
            if any(archive.getinfo(name).file_size > LIMIT for name in (image_file, text_file) if name):
                raise SystemExit(f"{image_file}: larger than any photo or its words; get the archive again")
            content, words = archive.read(image_file), json.loads(archive.read(text_file)) if text_file else []
            if given.long_edge:
                content, words = smaller(content, words, given.long_edge)
            draft = image.with_suffix(".part")
            for path, data in ((text, json.dumps(words, ensure_ascii=False).encode()), (draft, content)):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            draft.rename(image)  # last: a photo that is there is complete


if __name__ == "__main__":
    main()
