"""Detection with highly correlated classes: a small Faster R-CNN and exact scores (source 4).

`detector` trains with or without the boxes of a region on the very same images (`data.boxes.Scenes`), `score` says
whose boxes are better for it.
"""

from retailkit.detection.detector import (
    LOSSES,
    DetectorConfig,
    Detectors,
    build,
    detect,
    encode,
    fit,
    held_out_losses,
    train_detectors,
)
from retailkit.detection.score import (
    NEAR,
    SURE,
    ap_change,
    fit_by_image,
    gap,
    match_targets,
    precision_by_class,
)

__all__ = [
    "LOSSES",
    "NEAR",
    "SURE",
    "DetectorConfig",
    "Detectors",
    "ap_change",
    "build",
    "detect",
    "encode",
    "fit",
    "fit_by_image",
    "gap",
    "held_out_losses",
    "match_targets",
    "precision_by_class",
    "train_detectors",
]
