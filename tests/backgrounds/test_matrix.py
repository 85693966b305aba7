"""The train-by-test matrix against plain loops, and that a killed run goes on where it was."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from retailkit import models, training
from retailkit.backgrounds import PAPER, VariantSplit, matrix
from retailkit.cache import RESUMED
from retailkit.config import UsageError
from retailkit.metrics import wilson
from retailkit.runs import published
from retailkit.training import encoded, runs

SPEC = training.TrainSpec(
    model_options={"backbone": "timm:test_resnet", "weights": None},
    config=training.TrainConfig(epochs=4, batch_size=8),
)
TRAIN, TEST = ("original", "mixed_rand"), ("original", "only_bg_t", "mixed_same", "mixed_rand")


@pytest.fixture
def splits(data):
    return [VariantSplit.read(data.split(split, 32), seed=1) for split in ("train", "test")]


@pytest.fixture
def fits(monkeypatch):
    """What was trained, in order: (variant, seed)."""
    done, fit = [], runs.fit

    def counted(model, train, val=None, config=None, resume=None):
        done.append((train.name, config.seed))
        return fit(model, train, val, config, resume)

    monkeypatch.setattr(runs, "fit", counted)
    return done


def plain_model(splits, train, seed, spec=SPEC):
    """What a row of the matrix must train, by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = models.build("image", splits[0].classes, **spec.model_options)
    training.fit(model, splits[0].variant(train), None, replace(spec.config, seed=seed))
    return model


def test_cells_are_what_fit_and_evaluate_give(splits, tmp_path):
    cells = matrix.run(*splits, SPEC, TRAIN, TEST, seeds=(0, 5), folder=tmp_path / "m")
    assert cells[["train", "test", "seed"]].to_numpy().tolist() == [
        [train, test, seed] for seed in (0, 5) for train in TRAIN for test in TEST
    ]
    found = matrix.predictions(cells)
    assert len(found) == 2 * len(TRAIN) * len(TEST) * 9
    trained = {(train, seed): plain_model(splits, train, seed) for train in TRAIN for seed in (0, 5)}
    for cell in cells[cells["test"].isin(["original", "mixed_rand"])].itertuples():
        wanted = training.evaluate(trained[cell.train, cell.seed], splits[1].variant(cell.test))
        assert (cell.top1, cell.n, cell.low, cell.high) == (wanted.top1, 9, *wilson(wanted.correct.sum(), 9))
        part = found[(found["train"] == cell.train) & (found["test"] == cell.test) & (found["seed"] == cell.seed)]
        assert part["row"].tolist() == splits[1].rows.tolist()
        assert part["predicted"].tolist() == wanted.to_frame()["predicted"].tolist()
        np.testing.assert_allclose(part["confidence"], wanted.probs.max(1), rtol=1e-4)
        again = training.evaluate(training.load_checkpoint(cell.model)[0], splits[1].variant(cell.test))
        np.testing.assert_allclose(again.probs, wanted.probs, atol=1e-5)


def test_the_whole_network_can_learn_each_row(splits, fits, tmp_path):
    spec = replace(SPEC, config=replace(SPEC.config, mode="finetune", epochs=1, augment="light", train_size=24))
    (cell,) = matrix.run(*splits, spec, ["only_fg"], ["mixed_rand"], folder=tmp_path).itertuples()
    wanted = training.evaluate(plain_model(splits, "only_fg", 0, spec), splits[1].variant("mixed_rand"))
    assert cell.top1 == wanted.top1
    matrix.run(*splits, spec, ["only_fg"], ["mixed_rand"], folder=tmp_path)
    assert len(fits) == 1


@pytest.mark.fault(
    fault="a matrix of backgrounds is interrupted",
    injected="KeyboardInterrupt after the sixth cell",
    lost="nothing",
    repeated="the cell that was under way",
)
def test_a_killed_run_goes_on_without_repeating_finished_cells(splits, fits, tmp_path, monkeypatch):
    told = {"seeds": (0, 1), "folder": tmp_path / "m"}
    evaluate, left = training.evaluate, iter(range(6))

    def killed(*arguments, **options):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return evaluate(*arguments, **options)

    monkeypatch.setattr(training, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        matrix.run(*splits, SPEC, TRAIN, TEST, **told)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "m").rglob("*.csv")}
    assert len(finished) == 6 and fits == [("original", 0), ("mixed_rand", 0)]
    monkeypatch.setattr(training, "evaluate", evaluate)
    cells = matrix.run(*splits, SPEC, TRAIN, TEST, **told)
    assert fits == [("original", 0), ("mixed_rand", 0), ("original", 1), ("mixed_rand", 1)], "row 2 was kept"
    assert RESUMED.pop() == "6 of 16 cells of a matrix were there already"
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())
    assert not list((tmp_path / "m").rglob("*.tmp")) and not list((tmp_path / "m").rglob("*.partial"))
    fits.clear()
    more = matrix.run(*splits, SPEC, (*TRAIN, "only_fg"), (*TEST, "no_fg"), **told)
    assert fits == [("only_fg", 0), ("only_fg", 1)]
    pd.testing.assert_frame_equal(cells.merge(more, on=list(cells)), cells)


def test_a_damaged_cell_is_made_again_from_the_model_that_is_there(splits, fits, tmp_path):
    cells = matrix.run(*splits, SPEC, TRAIN[:1], TEST[:1], folder=tmp_path)
    path = Path(cells["predictions"].item())
    whole = path.read_text()
    # Cut at the end of a line it once gave 1.000 in place of 0.750.
    for damaged in (whole[:-4], "", "".join(whole.splitlines(keepends=True)[:-3]), "train,test\na,b\n"):
        path.write_text(damaged)
        pd.testing.assert_frame_equal(matrix.run(*splits, SPEC, TRAIN[:1], TEST[:1], folder=tmp_path), cells)
        assert path.read_text() == whole and len(fits) == 1


def test_other_masks_or_settings_get_cells_of_their_own(data, splits, fits, tmp_path):
    def top1(train, test, spec=SPEC):
        return matrix.run(train, test, spec, TRAIN[:1], TEST[:1], folder=tmp_path)

    ways = [
        top1(*splits),
        top1(*splits, replace(SPEC, config=replace(SPEC.config, epochs=5))),
        top1(splits[0].degraded("dilation", 0.1), splits[1]),
        top1(*(VariantSplit.read(data.split(split, 32), seed=2) for split in ("train", "test"))),
    ]
    assert len(fits) == 4 and len({way["predictions"].item() for way in ways}) == 4
    assert top1(*splits)["predictions"].item() == ways[0]["predictions"].item() and len(fits) == 4


def test_features_are_encoded_once_for_all_rows_and_seeds(splits, tmp_path, monkeypatch):
    seen, load = [], encoded.load_batches

    def counted(dataset, *rest):
        seen.append((dataset.name, len(dataset)))
        return load(dataset, *rest)

    monkeypatch.setattr(encoded, "load_batches", counted)
    spec = replace(SPEC, model_options={"backbone": "efficientnet_lite0"})
    matrix.run(*splits, spec, TRAIN, TEST, seeds=range(2), folder=tmp_path)
    assert sorted(seen) == sorted([(name, 12) for name in TRAIN] + [(name, 9) for name in TEST])


def test_wrong_calls_fail_before_anything_is_trained(data, splits, fits, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'original'"):
        matrix.run(*splits, SPEC, ["mixed_rand", "orginal"], folder=tmp_path)
    other = VariantSplit.read(matrix.labelled_by(data, "coarse").split("test", 32))
    with pytest.raises(UsageError, match="differ in classes or size"):
        matrix.run(splits[0], other, SPEC)
    for column, says in (("family", "'family' empty; use label or coarse"), ("coarser", "did you mean 'coarse'")):
        with pytest.raises(UsageError, match=says):
            matrix.labelled_by(data, column)
    assert not fits and other.classes == ["x", "y"] and data.classes == list("abc")


# -- What is read off it.


@pytest.fixture
def found():
    """Made-up answers: two models, two seeds; seed 1 has not seen the images 0 to 4."""
    rng, rows = np.random.default_rng(3), []
    for train in ("original", "mixed_rand"):
        for test in ("original", "only_bg_t", "mixed_same", "mixed_rand"):
            for seed in (0, 1):
                for row in range(5 * seed, 40):
                    right = bool(rng.uniform() < (0.9 if test == "mixed_same" else 0.5))
                    rows.append({"train": train, "test": test, "seed": seed, "row": row, "correct": right})
    return pd.DataFrame(rows)


def test_accuracy_is_that_of_all_seeds_and_the_gap_is_paired_by_image_and_seed(found):
    table = matrix.accuracy(found).set_index(["train", "test"])
    means = found.groupby(["train", "test"])["correct"].mean()
    pd.testing.assert_series_equal(table["accuracy"].sort_index(), means, check_names=False)
    assert len(table) == 8 and table["accuracy"].between(table["low"], table["high"]).all()
    gaps = matrix.bg_gap(found).set_index("train")
    rng = np.random.default_rng(0)
    for train, gap in gaps.iterrows():
        right = found[found["train"] == train].set_index(["test", "seed", "row"])["correct"].astype(float)
        pairs = (right["mixed_same"] - right["mixed_rand"]).to_dict()
        assert gap["gap"] == pytest.approx(np.mean(list(pairs.values()))) and (gap["n"], gap["seeds"]) == (40, 2)
        draws = []
        for _ in range(3000):
            images, drawn = rng.integers(40, size=40), rng.integers(2, size=2)
            draws.append(np.mean([pairs[s, r] for s in drawn for r in images if (s, r) in pairs]))
        assert (gap["low"], gap["high"]) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.03)
    with pytest.raises(UsageError, match="unknown test variant 'mixed_same'"):
        matrix.bg_gap(found[found["test"] != "mixed_same"])


def test_categories_follow_the_paper_for_every_combination():
    table = {
        (True, False, True): "BG required",
        (False, True, False): "BG fools",
        (True, False, False): "BG+FG required",
        (False, True, True): "BG+FG fools",
    }
    triples = list(itertools.product((True, False), repeat=3))
    for kind in (bool, float):
        kinds = matrix.categories(*(np.array(column, kind) for column in zip(*triples, strict=True)))
        assert kinds.tolist() == [table.get(triple, "BG irrelevant") for triple in triples]


def test_vulnerable_foregrounds_are_those_of_a_plain_loop(splits):
    split = splits[1]

    def predict(images):
        """Name a class by the middle and, a little, by a corner."""
        return (images[:, :, 12, 12] + 0.7 * images[:, :, 0, 0]).roll(-1, 1)

    table = matrix.vulnerable(predict, split, 99, 99, seed=4).set_index("position")
    assert len(table) == len(split)
    for fg in range(len(split)):
        fools = {}
        for bg in range(len(split)):
            pasted = split.backgrounds[bg].clone()
            for y, x in split.masks[fg, 0].nonzero().tolist():
                pasted[:, y, x] = split.images[fg, :, y, x]
            answer = int(predict(pasted[None].float() / 255).argmax())
            if answer != split.labels[fg]:
                fools[bg] = answer
        row = table.loc[fg]
        assert row["vulnerable"] == bool(fools) and row["label"] == split.labels[fg] and row["row"] == split.rows[fg]
        assert row["taken_for"] == fools.get(row["background"], -1) and (row["background"] >= 0) == bool(fools)
    assert 0 < table["vulnerable"].mean() < 1
    order = table[table["vulnerable"]].groupby("tried")["background"].nunique()
    assert (order == 1).all(), "each background is tried on all foregrounds that stand at the same time"
    one, same, other = (matrix.vulnerable(lambda x: predict(x) * 0, split, 4, 5, seed) for seed in (0, 0, 1))
    assert one.equals(same) and not one.equals(other) and len(one) == 5 and one["tried"].max() <= 4


def test_the_table_of_the_paper_has_our_variants():
    paper = published().query("dataset == 'imagenet9'").pivot(index="method", columns="split", values="top1")
    assert set(PAPER) <= set(paper.index) and set(paper.columns) <= {*PAPER, "in9l"}
    assert paper.loc["mixed_next", "only_bg_t"] == 0.0822 and paper.max(axis=None) <= 1


def test_rows_that_others_fill_are_those_that_are_missing_and_the_same(data, fits, tmp_path, elsewhere, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a root may be given relative to here
    data = data.moved(lambda path: path.relative_to(tmp_path))
    splits, here, there = matrix.read_splits(data, 32), tmp_path / "here", tmp_path / "there"
    expected = matrix.run(*splits, SPEC, TRAIN, TEST, (0, 1), here).drop(columns=["predictions", "model"])
    matrix.run(*splits, SPEC, TRAIN[1:], TEST, [1], there)
    for _ in range(2):
        matrix.run_rows(data, splits, SPEC, TRAIN, TEST, (0, 1), there, 2)
        assert [(row.train, row.seed) for row in elsewhere] == [("original", 0), ("mixed_rand", 0), ("original", 1)]
    fits.clear()
    found = matrix.run(*splits, SPEC, TRAIN, TEST, (0, 1), there).drop(columns=["predictions", "model"])
    assert not fits and found.equals(expected)
    cells = {path.relative_to(here): path.read_bytes() for path in here.rglob("*.csv")}
    assert len(cells) == 16 and all((there / name).read_bytes() == content for name, content in cells.items())
