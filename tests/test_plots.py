"""Plots draw what they are given."""

import io
import warnings
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from retailkit import plots
from retailkit.data.table import Sample, Truth, Word
from retailkit.metrics import Evaluation


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def evaluation():
    rng = np.random.default_rng(0)
    return Evaluation(rng.dirichlet(np.ones(4), 60), rng.integers(0, 4, 60), ["a1", "b1", "a2", "b2"], np.arange(60))


def texts(items):
    return [text.get_text() for text in items]


def map_of(attr, **options):
    return plots.attribution(torch.zeros(3, *attr.shape), attr, **options)


# -- Images


def test_right_and_wrong_are_marked_by_a_sign_and_not_by_colour_alone():
    images = [np.full((3, 8, 8), v) for v in (0.1, 0.5, 0.9)]
    figure = plots.contact_sheet([*images, None], ["x", "y", "z", ""], columns=2, correct=[True, False, None, None])
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["✓ x", "✗ y", "z"]
    assert plots.probabilities([0.2, 0.8], ["a", "b"], 0).get_yticklabels()[1].get_text() == "✓ a"


def test_long_names_side_by_side_do_not_run_into_each_other(made_up_explanation):
    def titles_of(figure):
        figure.canvas.draw()
        return [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]

    with plt.rc_context():
        plots.use_style()
        names = [f"SOLVEA ORANGE JUICE {kind} PULP" for kind in ("EXTRA", "SOME", "MUCH")]
        sheet = titles_of(plots.contact_sheet([np.zeros((3, 8, 8))] * 6, names * 2, 6))
        long = replace(made_up_explanation(), classes=names)
        figure = plots.local_explanations({name: (long.image, long) for name in ("image", f"photo 0: {names[0]}", "c")})
        why, trust = titles_of(figure), [ax.xaxis.label.get_window_extent() for ax in figure.axes if ax.get_xlabel()]
        for boxes in (sheet, why, trust):
            assert len(boxes) > 2 and all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_regions_are_numbered_and_do_not_widen_the_image():
    ranked = plots.boxes(np.full((3, 32, 32), 0.5), [[-4, 0, 12, 16], [8, 8, 24, 24]])
    assert texts(ranked.texts) == ["1", "2"] and ranked.get_xlim() == (-0.5, 31.5)


def test_ground_truth_draws_words_patch_and_outline():
    patch = torch.zeros(1, 16, 16, dtype=torch.bool)
    patch[0, 4:8, 4:8] = True
    none = torch.zeros_like(patch)
    truth = Truth(patch, none, none, [Word("LEAN", (4, 4, 8, 8), discriminative=True), Word("GONE", (0, 0, 0, 0))])
    ax = plots.ground_truth(Sample(torch.ones(3, 16, 16), 0, "", [], ~none, truth, 0))
    assert len(ax.patches) == 1 and len(ax.images) == 3  # photo with the tinted patch, and both outlines
    assert texts(ax.get_legend().get_texts()) == ["product", "differs between twins"]


def test_a_canvas_holds_the_image_and_nothing_else():
    drawn = plots.image(torch.rand(3, 20, 20), ax=plots.canvas(100))
    shown = np.array(Image.open(io.BytesIO(plots.png(drawn.figure, 100))).convert("RGB"))
    assert shown.shape == (100, 100, 3) and not plt.get_fignums()
    assert not (shown[[0, -1]] == 255).all((1, 2)).any(), "no white border"


# -- Maps


@pytest.mark.parametrize(("attr", "options", "limit"), [
    (np.linspace(-1, 3, 64).reshape(8, 8), {}, pytest.approx(3, abs=0.03)),
    (np.linspace(-1, 3, 64).reshape(8, 8), {"limit": 5}, 5),
    (1 + 99 * np.eye(400)[7].reshape(20, 20), {}, 1),  # a single extreme pixel does not pale the others
    (99 * np.eye(400)[7].reshape(20, 20), {}, 99),  # and is shown where it is alone
])  # fmt: skip
def test_attributions_have_one_symmetric_scale(attr, options, limit):
    low, high = map_of(attr, **options).images[-1].get_clim()
    assert -low == high == limit


def test_a_map_without_any_effect_says_so_and_a_blurred_one_keeps_its_sum():
    assert "no effect" in map_of(np.zeros((8, 8)), title="twin").get_title()
    drawn = map_of(4 * np.eye(441)[220].reshape(21, 21), blur=2).images[-1].get_array()
    assert drawn.sum() == pytest.approx(4) and 0 < drawn[10, 14] < drawn[10, 12] < 1


def test_classes_are_ordered_by_family_and_each_family_framed(evaluation):
    ax = plots.confusion(evaluation, ["a", "b", "a", "b"])
    assert texts(ax.get_yticklabels()) == ["A1", "A2", "B1", "B2"]
    assert [p.get_xy() for p in ax.patches] == [(0, 0), (2, 2)]


def test_words_are_tinted_by_what_they_say_on_a_shared_scale():
    image = torch.zeros(3, 16, 16)
    boxes = {"FOR": (0, 0, 4, 4), "AGAINST": (4, 4, 8, 8), "GONE": (0, 0, 0, 0), "NO": (8, 8, 9, 9)}
    found = [Word(name, box) for name, box in boxes.items()]
    ax = plots.word_attributions(image, found, np.array([2.0, -1.0, 1.5, 0.0]))
    assert [p.get_xy() for p in ax.patches] == [(0, 0), (4, 4), (8, 8)]
    for_it, against, nothing = (p.get_facecolor() for p in ax.patches)
    assert for_it[0] > for_it[2] and against[2] > against[0]
    assert for_it[3] == 2 * against[3] > nothing[3] == 0
    assert "no effect" in plots.word_attributions(image, found[:1], [0.0]).get_title()
    with pytest.raises(ValueError):
        plots.word_attributions(image, found, [1.0])


def test_a_local_explanation_shows_picture_and_words_on_one_scale_and_how_far_to_trust_it(made_up_explanation):
    figure = plots.local_explanation(made_up_explanation())
    picture, bars = figure.axes
    assert picture.images[-1].get_clim() == (-2, 2), "the strongest weight is a word's"
    assert "extra lean\nrather than lean" in picture.get_title()
    assert [p.get_xy() for p in picture.patches] == [(1, 1), (1, 4)]
    assert texts(bars.get_yticklabels()) == ["EXTRA", "<LEAN>"] and bars.patches[0].get_width() == 2.0
    said = bars.get_xlabel()
    assert "60% of the weight (50% to 70%)" in said and "R² 0.20: weak" in said and "1 images with hidden parts" in said
    nothing = plots.local_explanation(made_up_explanation("one part"))
    assert "nothing to explain: one part" in nothing.axes[1].get_xlabel()


@pytest.fixture
def made_up_class(made_up_explanation):
    """Two image features and two phrases of a class; the second ones speak against it, and one photo holds them."""
    image = {"weight": [2.0, -1.0], "share": [0.75, 0.25], "support": [3, 1], "medoid": [(7, 1), (7, 0)]}
    text = {"canonical": ["EXTRA LEAN", "BASIL"], "weight": [1.0, -0.5], "share": [0.75, 0.25], "samples": [3, 1]}
    tables = {
        "image_features": pd.DataFrame(image),
        "text_features": pd.DataFrame(text | {"variants": [{"LEAN": 2, "3": 1}, {"BASIL": 1}]}),
    }
    explanations = (made_up_explanation(),) * 3
    return SimpleNamespace(name="milk", photos=(7, 8, 9), explanations=explanations, text_share=0.25, **tables)


def test_a_class_is_shown_by_typical_superpixels_and_by_phrases_with_their_spellings(made_up_class):
    seen, bars = plots.class_explanation(made_up_class).axes
    assert seen.get_title() == "for: 75% of weight\n3 photos"
    shown, own = seen.images[0].get_array(), made_up_class.explanations[0]
    assert np.allclose(shown[:, 8:], own.image.numpy().transpose(1, 2, 0)[:, 8:]), "the superpixel is as it was"
    assert (shown[:, :8] >= 0.7).all(), "the rest is paled"
    assert texts(bars.get_yticklabels()) == ["EXTRA LEAN  (3 photos, 2 spellings)"]
    made_up_class.photos = (7,)
    both = plots.class_explanation(made_up_class).axes
    assert [ax.get_title().split(":")[0] for ax in both[:2]] == ["for", "against"]
    assert [bar.get_width() for bar in both[2].patches] == [0.75, -0.25]
    assert both[2].patches[0].get_facecolor() != both[2].patches[1].get_facecolor()


def test_models_side_by_side_share_phrases_and_scale_and_say_what_is_missing(made_up_class):
    index = pd.MultiIndex.from_tuples([("share", "text"), ("text", "EXTRA LEAN")], names=["kind", "feature"])
    table = pd.DataFrame({"sees": [0.0, 0.0], "both": [0.25, 0.5]}, index=index)
    blind = SimpleNamespace(**vars(made_up_class))
    blind.text_features, blind.text_share = blind.text_features.head(0), 0.0
    figure = plots.class_comparison({"sees": blind, "both": made_up_class}, table)
    titles = ["sees: words have 0% of its weight", "both: words have 25% of its weight"]
    assert [part.get_suptitle() for part in figure.subfigs] == titles
    assert figure.subfigs[0].axes[2].texts[0].get_text() == "no words"
    bars = figure.subfigs[1].axes[2]
    assert [bar.get_width() for bar in bars.patches] == [0.5] and bars.get_xlim() == pytest.approx((-0.55, 0.55))


def test_a_positive_window_is_not_painted_as_negative():
    """Formerly the median of the map was subtracted, so that the weaker of two positive windows came out blue."""
    pixels, windows = np.full((3, 8, 8), 0.5), np.array([[0, 0, 8, 8], [4, 4, 8, 8]])
    ax = plots.window_map(pixels, windows, np.array([3.2, 1.6]))
    spread = ax.images[1].get_array()
    assert spread[0, 0] == pytest.approx(0.05) and spread[6, 6] == pytest.approx(0.15) and spread.min() > 0
    assert [p.get_xy() for p in ax.patches] == [(0, 0), (4, 4)]


def test_the_sign_or_the_verdict_of_an_interval_shows_in_colour_and_marker():
    table = pd.DataFrame({"name": list("abc"), "difference": [1, -1, 1], "low": [0.5, -2, np.nan], "high": [2, -1, 2]})
    ax = plots.intervals(table.assign(n=4))
    looks = {(line.get_color(), line.get_marker()) for line in ax.lines[:3]}
    assert looks == {(plots.GOOD, "o"), (plots.BAD, "X"), (plots.QUIET, "D")}
    assert texts(ax.texts) == ["n = 4"] * 3
    said = table.assign(verdict=["as claimed", "the opposite", "less"])
    ax = plots.intervals(said, by="verdict", looks=plots.VERDICTS)
    assert [line.get_color() for line in ax.lines] == [plots.GOOD, plots.BAD, plots.COLOURS[1]]
    assert ax.get_legend_handles_labels()[1] == said["verdict"].tolist()


def test_rows_of_one_name_lie_side_by_side_on_its_line():
    table = pd.DataFrame({"name": ["a", "b", "a"], "of": ["x", "x", "y"], "ap": [0.1, 0.2, 0.3], "low": 0.0, "high": 1})
    ax = plots.intervals(table, "ap", by="of")
    assert texts(ax.get_yticklabels()) == ["a", "b"] and len(ax.lines) == 2
    assert [line.get_ydata().round().tolist() for line in ax.lines] == [[0, 1], [0]]
    assert ax.lines[0].get_ydata()[0] < ax.lines[1].get_ydata()[0]


def test_an_ablation_shows_what_each_step_gains_and_costs():
    table = pd.DataFrame({"name": ["p", "+ q"], "accuracy": [0.5, 0.7], "low": [0.4, 0.6], "high": [0.6, 0.8]})
    table[["gain", "gain_low", "gain_high"]] = [[np.nan] * 3, [0.2, 0.1, 0.3]]
    table[["minutes", "ms"]] = [[1.0, 0.0], [2.5, 0.0]]
    accuracy, gain, *costs = plots.ablation(table, chance=0.25).axes
    ends = [segment[:, 0] for segment in accuracy.collections[0].get_segments()]
    assert np.allclose(ends, [[0.4, 0.6], [0.6, 0.8]])
    assert texts(accuracy.get_yticklabels()) == ["p", "+ q"] and accuracy.yaxis_inverted()
    segments = [segment for lines in gain.collections for segment in lines.get_segments()]
    assert any(np.array_equal(segment, [[0.1, 1], [0.3, 1]]) for segment in segments)
    assert gain.get_ylim() == accuracy.get_ylim()
    assert [ax.get_xlabel() for ax in costs] == ["training, min", "ms per image"], "no MB in this table"
    assert texts(costs[0].texts) == ["1", "2.5"]


def test_learning_curves_average_seeds_and_mark_the_epoch_that_is_kept():
    epochs = pd.DataFrame({"epoch": range(1, 6), "loss": 1.0, "val_top1": [0.5, 0.9, 0.9, 0.9, 0.8]})
    losses = epochs.assign(val_loss=[0.9, 0.4, 0.3, 0.3, 0.1])
    runs = {"by top-1 alone": epochs, "then by loss": losses}
    loss, top1 = plots.learning_curves(runs, {"loss": "loss", "val_top1": "top-1"}, plt.subplots(1, 2)[1])
    assert [line.get_xdata()[0] for line in top1.lines if line.get_marker() == "o"] == [2, 3]
    assert loss.get_legend_handles_labels()[1] == list(runs)
    seeds = {"one": pd.DataFrame({"step": [1, 1, 2, 2], "loss": [1.0, 3.0, 4.0, 6.0]}), "two": losses.assign(step=1)}
    (ax,) = plots.learning_curves(seeds, {"loss": "loss"}, [plt.figure().gca()], "step")
    assert ax.lines[0].get_ydata().tolist() == [2, 5]


def test_lines_beyond_the_colours_are_drawn_all_the_same(evaluation):
    names = [f"run {k}" for k in range(12)]
    epochs = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "accuracy": [0.4, 0.6], "low": 0.3, "high": 0.7})
    table = pd.concat([epochs.assign(name=name) for name in names])
    drawn = [
        plots.learning_curves(dict.fromkeys(names, epochs), {"loss": "loss"}, [plt.figure().gca()])[0],
        plots.reliability(dict.fromkeys(names, evaluation)),
        plots.curves(table, "epoch"),
        plots.intervals(table.assign(run=table["name"]), "accuracy", by="run"),
    ]
    for ax in drawn:
        labels = [label.split(" (")[0] for label in ax.get_legend_handles_labels()[1]]
        assert [label for label in labels if label in names] == names


@pytest.fixture
def drawn_with(evaluation, made_up_explanation, made_up_class):
    """Return a function that draws a name wherever names of users can stand."""

    def draw(name):
        table = pd.DataFrame({"name": [name], "accuracy": 0.5, "low": 0.4, "high": 0.6, "difference": 0.1, "x": 1})
        explanation = replace(made_up_explanation(), classes=[name, "b"])
        word = Word(name, (1, 4, 5, 6), 1.0)
        return [
            plots.image(np.zeros((3, 8, 8)), name),
            plots.words([word], plots.image(np.zeros((3, 8, 8)))),
            plots.boxes(np.zeros((3, 8, 8)), [[0, 0, 4, 4]], [1], [name]),
            plots.accuracy_bars(table),
            plots.intervals(table),
            plots.curves(table, "x"),
            plots.accuracy_grid(table, "name", "x"),
            plots.confusion(replace(evaluation, classes=[name, "b", "c", "d"])),
            plots.probabilities([1.0], [name]),
            *plots.contact_sheet([np.zeros((3, 8, 8))], [name], title=name).axes,
            *plots.local_explanation(explanation).axes,
            *plots.local_explanations({name: (explanation.image, explanation)}).axes,
            *plots.class_explanation(SimpleNamespace(**vars(made_up_class) | {"name": name})).axes,
        ]

    return draw


def test_a_dollar_in_a_name_starts_no_formula(drawn_with):
    """Formerly `COLA $1 or 2 for $2` was set as a formula, or ended in an error."""
    for ax in drawn_with(r"COLA $1 \or 2 for $2"):
        ax.figure.canvas.draw()
        texts = [text for text in ax.figure.findobj(plt.Text) if "$" in text.get_text()]
        assert all(not text.get_parse_math() for text in texts), ax


def test_letters_that_no_font_has_are_drawn_as_their_escapes(drawn_with, monkeypatch):
    """The OCR engine sometimes answers in Chinese letters: they were drawn as empty boxes, with a warning for each."""
    monkeypatch.setattr("retailkit.plots.style.FALLBACKS", ("DejaVu Sans",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ax in drawn_with("XYZQ\u5c71 é"):
            ax.figure.canvas.draw()
            texts = [text.get_text().lower() for text in ax.figure.findobj(plt.Text)]
            shown = [text for text in texts if "xyzq" in text]
            assert shown and all(text.startswith("xyzq\\u5c71") for text in shown), ax


def test_letters_that_another_font_has_are_drawn_with_it(monkeypatch):
    monkeypatch.setattr("retailkit.plots.style.FALLBACKS", ("DejaVu Sans Mono", "A font that is nowhere"))
    with plt.rc_context({"font.family": "DejaVu Sans"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = plots.image(np.zeros((3, 8, 8)), "\u2312")  # a letter of the second font alone
        ax.figure.canvas.draw()
    assert ax.get_title() == "\u2312" and ax.title.get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"]


def test_a_diagram_has_its_boxes_and_arrows():
    ax = plots.diagram({"photo": (0, 0), "encoder*": (1, 0), "$x$": (2, 0)}, [("photo", "encoder*", "RGB")]).axes[0]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["photo", "encoder", "$x$", "RGB"]
    assert ax.texts[1].get_bbox_patch().get_facecolor() != ax.texts[0].get_bbox_patch().get_facecolor()
