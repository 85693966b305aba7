"""Detection with highly correlated classes: a small Faster R-CNN and exact scores (source 4)."""

# ruff: noqa: F401
from retailkit.detection.detector import LOSSES, DetectorConfig, build, train_detectors
from retailkit.detection.score import SURE, ap_change, fit_by_image, gap, match_targets, precision_by_class
