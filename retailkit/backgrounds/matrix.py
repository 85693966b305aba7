"""The train-by-test matrix of variants (Xiao et al., section 3), and what is read off it.

A row of the matrix is a model that learned from one variant, a cell what it answers for the images of another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from retailkit import cluster, training
from retailkit.backgrounds.splits import VariantSplit
from retailkit.backgrounds.variants import PAPER
from retailkit.cache import RESUMED, code_fingerprint, digest, replacing
from retailkit.config import UsageError, cache_dir, pick
from retailkit.data.table import ProductData
from retailkit.metrics import crossed_bootstrap, wilson
from retailkit.training import TrainSpec

COLUMNS = ("label", "family", "coarse")
CATEGORIES = ("BG required", "BG fools", "BG+FG required", "BG+FG fools", "BG irrelevant")
BATCH = 256  # images that are pasted together


def labelled_by(data: ProductData, column: str) -> ProductData:
    """Return the data set with another column of its table (`COLUMNS`) as the classes; those of the paper are coarse.

    Raises:
        UsageError: unknown column, or one that a row leaves empty.
    """
    names = data.table[pick(COLUMNS, column, "column of classes")]
    if (names == "").any():
        full = [c for c in COLUMNS if (data.table[c] != "").all()]
        raise UsageError(f"{data.name!r} leaves the column {column!r} empty; use {' or '.join(full)}")
    return replace(data, table=data.table.assign(label=names), classes=sorted(set(names)))


# -- The cells.


def run(
    train: VariantSplit,
    test: VariantSplit,
    spec: TrainSpec,
    train_variants: Sequence[str] = PAPER,
    test_variants: Sequence[str] = PAPER,
    seeds: Sequence[int] = (0,),
    folder: str | Path | None = None,
) -> pd.DataFrame:
    """Train on each variant and test on each; what is in `folder` already is not done again, unless it is damaged.

    A frozen encoder sees each variant once: its features are cached and shared by all cells. The last epoch is kept, as
    in the paper; no validation split is used.

    Args:
        train: images to learn from.
        test: images to judge by, of the same classes and size.
        spec: model and configuration; the data and the size are those of the splits.
        train_variants: keys of `VARIANTS`, the rows.
        test_variants: keys of `VARIANTS`, the columns.
        seeds: of weights, order and augmentation; each gives one more row.
        folder: for the files, each setting in a folder of its own; None takes the cache.

    Returns:
        One row per cell: `train`, `test`, `seed`, `top1`, `low`, `high` (95 % Wilson interval over images), `n`,
        `predictions` (CSV file, see `predictions`) and `model` (checkpoint, see `training.load_checkpoint`).
    """
    folder, kept = Path(folder or cache_dir("matrix")) / _settings(train, test, spec), 0
    learned = {name: train.variant(name) for name in train_variants}
    judged = {name: test.variant(name) for name in test_variants}
    cells = []
    rows = [(name, seed) for seed in seeds for name in learned]
    for name, seed in tqdm(rows, desc="train", delay=2, mininterval=2, leave=False):
        config, file = replace(spec.config, seed=seed), folder / f"{name}__{seed}.safetensors"
        paths = _cells(folder, name, seed, judged)
        missing = {column: path for column, path in paths.items() if not _is_whole(path, test)}
        kept += len(paths) - len(missing)
        if missing:
            model, split = replace(spec, config=config).build(train.classes), learned[name]
            facts = {"size": split.size, "fit": split.fit, "trained_on": name}
            training.fit_once(model, split, None, config, file, **facts)
        for column, path in missing.items():
            shown = training.encode(model, judged[column]) if config.mode == "frozen" else judged[column]
            with replacing(path) as draft:
                training.evaluate(model, shown).to_frame().to_csv(draft, index=False)
        for column, path in paths.items():
            right = _read_cell(path)["correct"]
            low, high = wilson(right.sum(), len(right))
            facts = {"top1": right.mean(), "low": low, "high": high, "n": len(right)}
            where = {"predictions": str(path), "model": str(file)}
            cells.append({"train": name, "test": column, "seed": seed} | facts | where)
    if 0 < kept < len(cells):
        RESUMED.append(f"{kept} of {len(cells)} cells of a matrix were there already")
    return pd.DataFrame(cells)


def _settings(train: VariantSplit, test: VariantSplit, spec: TrainSpec) -> str:
    """Return what stands for all that decides a cell but its variants and its seed."""
    if train.classes != test.classes or train.size != test.size:
        raise UsageError("the training and the test images differ in classes or size; make both splits alike")
    seen = [(training.data_fingerprint(s.data, s.rows, text=False), repr(s.appearance)) for s in (train, test)]
    return digest(replace(spec, root=None), code_fingerprint("retailkit.training.loop"), seen)


def _cells(folder: Path, train: str, seed: int, columns: Iterable[str]) -> dict[str, Path]:
    """Return the file of each cell of a row."""
    return {column: folder / f"{train}__{column}__{seed}.csv" for column in columns}


def _is_whole(path: Path, test: VariantSplit) -> bool:
    """Return whether a cell is finished; a file that was cut off or damaged is not."""
    try:
        cell = _read_cell(path)
        return cell["row"].tolist() == test.rows.tolist() and cell["correct"].dtype == bool
    except (OSError, ValueError, KeyError):  # not there, no CSV, another table
        return False


def _read_cell(path: str | Path) -> pd.DataFrame:
    """Read what was answered in a cell; a class may be called NA."""
    return pd.read_csv(path, keep_default_na=False)


# -- Rows on several processes or machines.


@dataclass(frozen=True)
class Scenes:
    """The images to train and to test on, known by the `key` of the settings.

    Where they are moved, another key stands for that place: files of an earlier row are gone by then.
    """

    key: str
    data: ProductData = field(compare=False)  # with masks, and splits `train` and `test`
    size: int = field(compare=False)


@dataclass(frozen=True)
class Row:
    """A row of the matrix, which a worker fills; see `cluster.Portable`."""

    scenes: Scenes
    spec: TrainSpec
    train: str
    seed: int
    columns: Sequence[str]
    output: Path

    def inputs(self) -> list[Path]:
        """Return the files that it reads."""
        return self.scenes.data.files()

    def moved(self, place: Callable[[Path], Path], output: Path) -> Row:
        """Return the same row for a disk where each input lies at `place(path)`."""
        scenes = replace(self.scenes, key=str(output), data=self.scenes.data.moved(place))
        return replace(self, scenes=scenes, output=output)


def run_rows(
    data: ProductData,
    splits: tuple[VariantSplit, VariantSplit],
    spec: TrainSpec,
    train_variants: Sequence[str],
    test_variants: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    jobs: int,
    scheduler: str = "",
) -> None:
    """Fill the rows that are not finished in `folder` on several processes, so that `run` finds them all there.

    `splits` are those that `read_splits` gives of `data`; other arguments are those of `run` and `cluster.workers`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes = Scenes(_settings(*splits, spec), data.moved(Path.absolute), splits[0].size)
    rows = []
    for seed, name in itertools.product(seeds, train_variants):
        cells = _cells(folder / scenes.key, name, seed, test_variants)
        # Each row starts with another column: workers of one cache rarely encode the same one at the same time then.
        columns = np.roll(test_variants, -len(rows)).tolist()
        if not all(_is_whole(path, splits[1]) for path in cells.values()):
            rows.append(Row(scenes, spec, name, seed, columns, folder.resolve()))
    if not rows:
        return
    with cluster.workers(min(jobs, len(rows)), scheduler, folder.resolve()) as pool:
        for _, fault in pool.as_done(_fill, rows, "rows"):
            if isinstance(fault, Exception):
                raise fault


def read_splits(data: ProductData, size: int) -> tuple[VariantSplit, VariantSplit]:
    """Read the images to train and to test on."""
    train, test = (VariantSplit.read(data.split(name, size)) for name in ("train", "test"))
    return train, test


def _fill(row: Row) -> None:
    run(*_opened(row.scenes), row.spec, [row.train], row.columns, [row.seed], row.output)


@lru_cache(maxsize=1)
def _opened(scenes: Scenes) -> tuple[VariantSplit, VariantSplit]:
    return read_splits(scenes.data, scenes.size)


# -- What is read off the matrix.


def predictions(cells: pd.DataFrame) -> pd.DataFrame:
    """Return what was answered in the cells that `run` returned, which the functions below take as `answers`.

    One row per image and cell: `train`, `test`, `seed`, `row` (of the data set's table), `label`, `predicted`,
    `confidence`, `correct`.
    """
    keys = ["train", "test", "seed"]
    parts = {tuple(cell[key] for key in keys): _read_cell(cell["predictions"]) for cell in cells.to_dict("records")}
    return pd.concat(parts, names=keys).reset_index(level=keys).reset_index(drop=True)


def accuracy(answers: pd.DataFrame) -> pd.DataFrame:
    """Return `accuracy` by `train` and `test`, `low`, `high` (95 %, images and seeds drawn), `n` (images), `seeds`."""
    rows = []
    for (train, test), part in answers.groupby(["train", "test"], sort=False):
        right = part.pivot(index="row", columns="seed", values="correct").astype(float)
        rows.append({"train": train, "test": test, **_mean("accuracy", right)})
    return pd.DataFrame(rows)


def bg_gap(answers: pd.DataFrame) -> pd.DataFrame:
    """Return how much better each model does on MIXED-SAME than on MIXED-RAND (Xiao et al., section 3).

    Both are pasted, so that seams do not count. Columns `train`, `gap`, and others as of `difference`.
    """
    rows = []
    for train in answers["train"].unique():
        gap = difference(answers, (train, "mixed_same"), (train, "mixed_rand"))
        rows.append({"train": train, "gap": gap.pop("difference"), **gap})
    return pd.DataFrame(rows)


def difference(answers: pd.DataFrame, first: tuple[str, str], second: tuple[str, str]) -> dict[str, float]:
    """Return by how much the accuracy of the first cell, given as (train, test), exceeds that of the second.

    Keys are `difference`, `low`, `high` (95 %, paired by image and seed), `n` (images), `seeds`.
    """
    one, other = (
        correct(answers, train)[pick(answers["test"].unique(), test, "test variant")] for train, test in (first, second)
    )
    return _mean("difference", (one - other).unstack("seed"))


def _mean(name: str, values: pd.DataFrame) -> dict[str, float]:
    """Return the mean of values (images x seeds), its interval, and the numbers of images and seeds."""
    low, high = crossed_bootstrap(values.to_numpy())
    return {name: float(np.nanmean(values)), "low": low, "high": high, "n": len(values), "seeds": values.shape[1]}


def correct(answers: pd.DataFrame, train: str) -> pd.DataFrame:
    """Return 0.0 or 1.0, whether the model trained on `train` is correct, by (`seed`, `row`) and test variant."""
    part = answers[answers["train"] == pick(answers["train"].unique(), train, "training variant")]
    return part.pivot(index=["seed", "row"], columns="test", values="correct").astype(float)


def categories(full: Sequence[bool], foreground: Sequence[bool], background: Sequence[bool]) -> np.ndarray:
    """Return for each image what its background does to a model (Xiao et al., section 3).

    `full`, `foreground` and `background` (N,) say whether the image itself, its foreground on a random background
    (`mixed_rand`), and its background alone (`only_bg_t`) are classified correctly.

    Returns:
        (N,) of `CATEGORIES`. The background is *required* where the image is correct and the foreground is not, and
        *fools* where it is the other way round; with `+FG` where the background alone does not do so. It is
        irrelevant where image and foreground are equally correct.
    """
    full, foreground, background = (np.asarray(a).astype(bool) for a in (full, foreground, background))
    required, fools = full & ~foreground, ~full & foreground
    cases = [required & background, fools & ~background, required & ~background, fools & background]
    return np.select(cases, CATEGORIES[:4], CATEGORIES[4])


def vulnerable(
    predict: Callable[[Tensor], Tensor], split: VariantSplit, backgrounds: int, foregrounds: int, seed: int = 0
) -> pd.DataFrame:
    """Find the foregrounds that some background fools (Xiao et al., section 3: adversarial backgrounds).

    So many backgrounds of a split, whatever their class, are pasted behind so many foregrounds, drawn by the seed;
    `predict` takes images (B,3,S,S) in [0,1] and returns probs (B,K), as an `inference.Predictor` does.

    Returns:
        One row per foreground: `row` (of the data set's table), `position` (in `split`), `label`, `vulnerable`,
        `tried` (backgrounds until it was fooled, or all), and `background` (position of the one that did) and
        `taken_for` (the wrong class), -1 where none did. Labels are class indices.
    """
    rng = np.random.default_rng(seed)
    positions = np.sort(rng.permutation(len(split))[:foregrounds])
    drawn = rng.permutation(len(split))[:backgrounds]
    labels = split.labels[positions]
    tries, culprits, taken_for = (np.full(len(positions), start) for start in (len(drawn), -1, -1))
    standing = np.arange(len(positions))
    for tried, background in enumerate(tqdm(drawn, "backgrounds", delay=2, mininterval=2, leave=False), start=1):
        rows = torch.from_numpy(positions[standing]).split(BATCH)
        pasted = (torch.where(split.masks[r], split.images[r], split.backgrounds[background]) for r in rows)
        predicted = torch.cat([predict(images.float() / 255).argmax(1).cpu() for images in pasted]).numpy()
        fooled = predicted != labels[standing]
        fallen = standing[fooled]
        tries[fallen], culprits[fallen], taken_for[fallen] = tried, background, predicted[fooled]
        standing = standing[~fooled]
        if not len(standing):
            break
    facts = {"row": split.rows[positions], "position": positions, "label": labels, "vulnerable": culprits >= 0}
    return pd.DataFrame(facts | {"tried": tries, "background": culprits, "taken_for": taken_for})
