"""A trained image classifier as an ONNX graph: from a picture in [0,1] to probabilities, in float32 and in int8.

Normalisation, pooling, head and softmax are inside the graph, and batch normalisation is folded into the
convolutions, so that nothing of retailkit or PyTorch is needed where the model runs.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from retailkit.config import UsageError
from retailkit.inference import fold, to_onnx
from retailkit.models.classifier import Features, ProductClassifier

# NTS-Net changes tensors in place while it suppresses regions, which the exporter cannot follow.
POOLINGS = ("gap", "lca")
CALIBRATION = 128  # training photos that int8 is calibrated on


def require_exportable(model: nn.Module) -> None:
    """Make sure that a model can leave the house as one graph.

    Raises:
        UsageError: it reads text, matches keypoints, votes, or its pooling cannot be exported; says which models can.
    """
    name = getattr(model, "build_args", {}).get("name", type(model).__name__)
    pooling = getattr(model, "build_args", {}).get("pooling")
    can = "train `image` or `lca`, which can be exported"
    if not isinstance(model, ProductClassifier):  # a matcher or a committee
        raise UsageError(f"model {name!r} is not one image network and a head, and so no single graph; {can}")
    if model.modalities != ("image",):
        raise UsageError(f"model {name!r} reads text, which needs an OCR engine and a tokenizer; {can}")
    if pooling not in POOLINGS:
        raise UsageError(f"pooling {pooling!r} of model {name!r} cannot be exported; {can}")


class _Whole(nn.Module):
    """From images in [0,1] to probabilities."""

    def __init__(self, model: ProductClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        values = self.model.pooling(self.model.image_encoder, images)
        # All True. Made from the values, as a tensor of ones would be traced for one batch size only.
        available = values[:, 0] == values[:, 0]
        return self.model.classify(Features(values, available)).float().softmax(-1)


def float32_graph(model: ProductClassifier, size: int) -> bytes:
    """Return a model as an ONNX graph: `images` (B,3,size,size) float32 in [0,1] to `probs` (B,K).

    Args:
        model: on the CPU, in evaluation mode; it is left as it is.
        size: side of the pictures; the graph serves this side only.

    Raises:
        UsageError: see `require_exportable`.
    """
    require_exportable(model)
    twin = copy.copy(model)
    twin._modules = {**model._modules, "image_encoder": fold(model.image_encoder, size)}
    return to_onnx(_Whole(twin), (2, 3, size, size), "probs")


def int8_graph(graph: bytes, batches: Iterable[Tensor]) -> bytes:
    """Return a float32 graph whose convolutions compute in int8: QDQ, weights by channel, activations calibrated.

    Weights take seven of the eight bits, as processors without VNNI would overflow otherwise.

    Args:
        graph: from `float32_graph`.
        batches: (B,3,size,size) in [0,1], training photos.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser logs hints on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain, ready, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "small"))
            plain.write_bytes(graph)
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready,
                small,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=["Conv", "Add", "Clip"],
            )
            return small.read_bytes()
    finally:
        root.setLevel(level)


class _Reader:
    """Hands photos to the calibration, in the form that ONNX Runtime asks for."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch.numpy()}
