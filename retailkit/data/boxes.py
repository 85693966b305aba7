"""Images with boxes, for detection: rendered scenes (`data.synthetic.render_scenes`) or files in COCO's format."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from retailkit.cache import open_file
from retailkit.config import DataError, UserError, pick
from retailkit.data.images import file_beside, read_image

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
NEEDED = {  # parts of a COCO file: key -> type
    "images": {"id": int | str, "file_name": str},
    "categories": {"id": int | str, "name": str},
    "annotations": {"image_id": int | str, "category_id": int | str, "bbox": list},
}


@dataclass(frozen=True)
class Scenes:
    """Images with boxes."""

    classes: list[str]  # label k is `classes[k - 1]`, 0 is the background
    images: list[Tensor | Path]  # (3,H,W) uint8 tensors, or files that are read when they are asked for
    sizes: list[tuple[int, int]]  # height and width of each image in pixels
    boxes: list[Tensor]  # (N,4) float32 of each image: x0, y0, x1, y1 in pixels
    labels: list[Tensor]  # (N,) int64 of each image
    region: str = ""  # name of the class that comes with the targets; "" for none
    targets: tuple[str, ...] = ()  # names of the classes that it comes with

    def __len__(self) -> int:
        return len(self.images)

    @property
    def region_label(self) -> int:
        """Label of the region; -1 where there is none."""
        return self.classes.index(self.region) + 1 if self.region else -1

    def image(self, index: int) -> Tensor:
        """Return an image, (3,H,W) float32 in [0,1]."""
        image = self.images[index]
        if not isinstance(image, Tensor):
            image = torch.from_numpy(read_image(image)).permute(2, 0, 1)
        return image.float() / 255

    def annotation(self, index: int, region: bool = True) -> dict[str, Tensor]:
        """Return what torchvision's detectors learn from: `boxes` (N,4) and `labels` (N,); the region's if asked."""
        keep = (self.labels[index] != self.region_label) | region
        return {"boxes": self.boxes[index][keep], "labels": self.labels[index][keep]}

    def select(self, indices: Sequence[int]) -> Scenes:
        """Return some of the images."""
        columns = ("images", "sizes", "boxes", "labels")
        return replace(self, **{name: [getattr(self, name)[int(i)] for i in indices] for name in columns})


def load_coco(annotations: str | Path, images: str | Path, region: str = "") -> Scenes:
    """Read boxes in the format of COCO: `images`, `categories` and `annotations` with `bbox` as x, y, width, height.

    Annotations with `iscrowd` are left out. Boxes refer to the upright image. Every image is decoded once here, so that
    all that is broken is listed before a training begins.

    Args:
        annotations: the JSON file; a byte order mark does no harm.
        images: folder that contains each `file_name`.
        region: category that comes with all others; "" for none.

    Raises:
        DataError: not in this format, an image is missing or broken, or a box is empty or outside its image.
        UsageError: `region` is no category of the file.
    """
    path, faults = Path(annotations), []
    content = _coco_content(path)
    names = {row["id"]: unicodedata.normalize("NFC", row["name"]) for row in content["categories"]}
    classes = list(dict.fromkeys(names.values()))
    if region:
        pick(classes, region, f"category of {path.name}")
    files, sizes = {}, {}
    for row in tqdm(content["images"], "check images", delay=2, mininterval=2, leave=False):
        file = files[row["id"]] = file_beside(Path(images), row["file_name"])
        try:
            height, width = sizes[row["id"]] = read_image(file).shape[:2]
        except DataError as error:
            faults.append(f"{error} (image {row['id']} of {path})")
            continue
        declared = (row.get("width") or width, row.get("height") or height)  # some tools write null
        if [str(side).removesuffix(".0") for side in declared] != [str(width), str(height)]:
            what = f"has {width}x{height} pixels but {path} says {declared[0]}x{declared[1]}"
            faults.append(f"{file}: {what}: its boxes are of another size; scale them or restore the image")
    boxes: dict[Any, list[Box]] = {key: [] for key in files}
    labels: dict[Any, list[int]] = {key: [] for key in files}
    for row in (row for row in content["annotations"] if str(row.get("iscrowd", 0)) in ("0", "False", "None")):
        key = row["image_id"]
        if fault := _fault(row, names, files, sizes):
            faults.append(f"{path}: annotation {row.get('id')}: {fault}")
        elif key in sizes:
            x, y, width, height = row["bbox"]  # what is less than a pixel over the edge is cut off
            boxes[key].append((max(x, 0), max(y, 0), min(x + width, sizes[key][1]), min(y + height, sizes[key][0])))
            labels[key].append(classes.index(names[row["category_id"]]) + 1)
    if faults:
        raise DataError.listing(faults)
    return Scenes(
        classes,
        list(files.values()),
        list(sizes.values()),
        [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4) for rows in boxes.values()],
        [torch.tensor(rows, dtype=torch.int64) for rows in labels.values()],
        region,
        tuple(name for name in classes if name != region),
    )


def _coco_content(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the file's content, in which each needed list has rows with the needed keys, and no id occurs twice."""
    try:
        with open_file(path) as file:
            content = json.loads(file.read().decode("utf-8-sig"))
    except UserError as error:
        raise DataError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); export the boxes again") from None
    for part, keys in NEEDED.items():
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path}: has no list {part!r}; export the boxes in COCO's detection format")
        for index, row in enumerate(rows):
            given = row if isinstance(row, dict) else {}
            if wrong := [key for key, kind in keys.items() if not isinstance(given.get(key), kind)]:
                raise DataError(f"{path}: {part}[{index}] lacks {', '.join(wrong)}; add it or drop the row")
        ids = Counter(row["id"] for row in rows if "id" in keys)
        if twice := [key for key, count in ids.items() if count > 1]:
            raise DataError(f"{path}: {part} has the id {twice[0]} more than once; give each its own")
    if not content["images"]:
        raise DataError(f"{path}: lists no images; export the boxes again")
    return content


def _fault(row: dict[str, Any], names: dict, files: dict, sizes: dict[Any, tuple[int, int]]) -> str:
    """Return what is wrong with an annotation; "" for nothing."""
    if row["image_id"] not in files:
        return f"image_id {row['image_id']!r} is not among the images; add the image or drop it"
    if row["category_id"] not in names:
        known = ", ".join(map(repr, names))
        return f"unknown category_id {row['category_id']!r} (known: {known}); correct or add it"
    box = row["bbox"]
    if len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return f"bbox {box} is not four numbers x, y, width, height; correct it"
    if not all(abs(v) < 1e9 for v in box) or min(box[2:]) <= 0:  # also NaN
        return f"bbox {box} is empty or endless; drop it"
    if max(box) <= 1:
        return f"bbox {box} is within one pixel; give pixels, not shares of the image"
    height, width = sizes.get(row["image_id"], (np.inf, np.inf))
    if min(box[:2]) < -1 or box[0] + box[2] > width + 1 or box[1] + box[3] > height + 1:
        return f"bbox {box} is outside its image of {width}x{height} pixels; correct it"
    return ""
