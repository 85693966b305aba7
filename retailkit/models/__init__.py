"""Models: `build(name, classes)` gives a `ProductClassifier`."""

from retailkit.models.classifier import (
    MATCHERS,
    MODELS,
    POOLINGS,
    Features,
    ProductClassifier,
    build,
    load_nts_checkpoint,
    rebuild,
)
from retailkit.models.encoders import BACKBONES, KEYPOINT_NETWORKS, TEXT_ENCODERS, TRANSFORMERS, fetch_weights

__all__ = [
    "BACKBONES",
    "KEYPOINT_NETWORKS",
    "MATCHERS",
    "MODELS",
    "POOLINGS",
    "TEXT_ENCODERS",
    "TRANSFORMERS",
    "Features",
    "ProductClassifier",
    "build",
    "fetch_weights",
    "load_nts_checkpoint",
    "rebuild",
]
