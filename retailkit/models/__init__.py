"""Models: `build(name, classes)` gives a `ProductClassifier`."""

from retailkit.models.classifier import MODELS, POOLINGS, Features, ProductClassifier, build, rebuild
from retailkit.models.encoders import BACKBONES, TEXT_ENCODERS, fetch_weights

__all__ = [
    "BACKBONES",
    "MODELS",
    "POOLINGS",
    "TEXT_ENCODERS",
    "Features",
    "ProductClassifier",
    "build",
    "fetch_weights",
    "rebuild",
]
