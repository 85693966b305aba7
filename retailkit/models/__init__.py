"""Models: `build(name, classes)` gives a `ProductClassifier`."""

# ruff: noqa: F401
from retailkit.models.classifier import ProductClassifier
from retailkit.models.encoders import TEXT_ENCODERS
from retailkit.models.pooling import Features
from retailkit.models.registry import MATCHERS, MODELS, POOLINGS, build, load_nts_checkpoint, rebuild
from retailkit.models.weights import BACKBONES, KEYPOINT_NETWORKS, TRANSFORMERS, fetch_weights
