"""Words and features of many photos, made on several processes or machines before a training asks for them.

Each worker makes them for some of the photos, and they come into the cache of the command, where `ocr.add_text` and
`encode` find them. What a worker could not make is made by these, which say what is wrong with a photo.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retailkit import cluster
from retailkit.cache import kept_tensors, replacing
from retailkit.config import DataError, cache_dir
from retailkit.data import ocr
from retailkit.data.table import ProductData, ProductDataset
from retailkit.training.encoded import encode, features_file, joined
from retailkit.training.runs import TrainSpec

READ, ENCODED = 32, 512  # photos that a worker takes at a time: their words; their features, in whole batches


@dataclass(frozen=True)
class Part:
    """Photos whose words, or with a training whose features, go into a cache; see `cluster.Portable`."""

    photos: ProductData
    output: Path  # the cache
    spec: TrainSpec | None = None

    def inputs(self) -> list[Path]:
        """Return the files that it reads."""
        return self.photos.files()

    def moved(self, place: Callable[[Path], Path], output: Path) -> Part:
        """Return the same part for a disk where each input lies at `place(path)`."""
        return replace(self, photos=self.photos.moved(place), output=output)


def read_words(data: ProductData, jobs: int, scheduler: str = "") -> None:
    """Read the words of a data set on several processes or machines, so that `ocr.add_text` finds them.

    Args:
        data: the data set.
        jobs: processes; 1 without a scheduler leaves all to `ocr.add_text`, which uses threads.
        scheduler: address of a dask scheduler, whose workers then take the place of `jobs` processes.
    """
    if jobs == 1 and not scheduler:
        return
    images = data.table["image"][data.table["text"] == ""]
    rows = [row for row, path in images.items() if not ocr.words_file(data.name, row, path).is_file()]
    bare = replace(data, table=data.table.assign(mask=""))  # no worker needs masks
    _fill([bare.select(rows[i : i + READ]) for i in range(0, len(rows), READ)], None, jobs, scheduler)


def encode_splits(spec: TrainSpec, data: ProductData, jobs: int, scheduler: str = "") -> None:
    """Encode what a frozen training without augmentation learns from, so that `fit` finds it; see `read_words`."""
    if jobs == 1 and not scheduler:
        return
    model = spec.build(data.classes)
    splits = [data.split(name, spec.size or model.input_size) for name in ("train", "val") if name in data.splits]
    parts = {file.stem: _parts(s) for s in splits if not (file := features_file(model, s)).is_file()}
    whole = [part for split in parts.values() for part in split]
    missing = [part.data.select(part.rows) for part in whole if not features_file(model, part).is_file()]
    _fill(missing, spec, jobs, scheduler)
    for key, split in parts.items():
        kept_tensors("features", key, lambda split=split: joined(encode(model, part) for part in split))


def _parts(split: ProductDataset) -> list[ProductDataset]:
    return [split.with_options(rows=split.rows[i : i + ENCODED]) for i in range(0, len(split), ENCODED)]


def _fill(photos: Sequence[ProductData], spec: TrainSpec | None, jobs: int, scheduler: str) -> None:
    """Let workers make the words of photos or, for a training, their features."""
    if not photos:
        return
    parts = [Part(some.moved(Path.absolute), cache_dir(), spec) for some in photos]
    with cluster.workers(min(jobs, len(parts)), scheduler, cache_dir()) as pool:
        for _, fault in pool.as_done(_make, parts, "encode" if spec else "OCR"):
            if fault:
                raise fault


def _make(part: Part) -> None:
    """Make words or features in the cache of this process, and copy them into that of the part if it is another one."""
    for file in _encoded(part.photos, part.spec) if part.spec else _read(part.photos):
        if not (target := part.output / file.relative_to(cache_dir())).exists():
            with replacing(target) as draft:
                shutil.copyfile(file, draft)


def _read(photos: ProductData) -> Iterator[Path]:
    for row, image in photos.table["image"].items():
        with suppress(DataError):
            ocr.add_text(photos.select(np.array([row])))  # one by one, for a worker has one thread
            yield ocr.words_file(photos.name, row, image)


def _encoded(photos: ProductData, spec: TrainSpec) -> Iterator[Path]:
    model = spec.build(photos.classes)
    split = photos.split("+".join(photos.splits), spec.size or model.input_size)
    with suppress(DataError):
        encode(model, split)
        yield features_file(model, split)
