"""Detection with highly correlated classes: scenes, a small Faster R-CNN, and exact scores (source 4).

`scenes` draws shelves on which a region always comes with one product, `detector` trains with or without that
region's boxes on the very same pictures, `score` says whose boxes are better for it.
"""

from retailkit.detection.comparison import Detectors, train_detectors
from retailkit.detection.detector import LOSSES, DetectorConfig, Maps, build, detect, encode, fit, held_out_losses
from retailkit.detection.scenes import RELATIONS, Scenes, load_coco, render
from retailkit.detection.score import (
    NEAR,
    SURE,
    ap_change,
    average_precision,
    fit_by_picture,
    gap,
    match_targets,
    precision_by_class,
)

__all__ = [
    "LOSSES",
    "NEAR",
    "RELATIONS",
    "SURE",
    "DetectorConfig",
    "Detectors",
    "Maps",
    "Scenes",
    "ap_change",
    "average_precision",
    "build",
    "detect",
    "encode",
    "fit",
    "fit_by_picture",
    "gap",
    "held_out_losses",
    "load_coco",
    "match_targets",
    "precision_by_class",
    "render",
    "train_detectors",
]
