"""The drawing layer: data in, Axes out. Nothing here reads files, computes results or opens a window.

Notebooks call `use_style()` once. Throughout, `pixels` is an image (3,H,W) in [0,1], boxes are x0, y0, x1, y1 in its
pixels, and `ax` is where to draw; None makes a figure. Class names, OCR words and file names come from users: what
draws them ends with `literal` or `as_written`.
"""

# ruff: noqa: F401, I001
# fmt: off
import matplotlib.pyplot as plt

from retailkit.plots.style import (
    AGAINST, BAD, COLOURS, FOR, GOOD, QUIET, canvas, literal, png, use_style,
)
from retailkit.plots.images import (
    boxes, confusion_pairs, contact_sheet, ground_truth, image, outline, parts, sample_sheet, strip, words,
)
from retailkit.plots.charts import (
    VERDICTS, ablation, accuracy_bars, accuracy_grid, before_after, confusion, curves, diagram, intervals,
    learning_curves, probabilities, reliability,
)
from retailkit.plots.explanations import (
    attribution, class_comparison, class_explanation, explanation_map, local_explanation, local_explanations,
    strongest, strongest_words, trust, typical_superpixel, window_map, word_attributions,
)
