"""The fast way to push many masked images through a model.

The encoders do nearly all of the work, so they alone are compiled, in one way for each kind of device: the same model,
image and seed give the same explanation.
"""

from __future__ import annotations

import copy
import io
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from retailkit.cache import code_fingerprint, digest, kept_tensors
from retailkit.config import UsageError, UserError
from retailkit.models.classifier import Features, ProductClassifier, evaluating
from retailkit.models.encoders import ImageEncoder, TransformerEncoder
from retailkit.models.ensemble import Ensemble
from retailkit.models.pooling import LastBlocks
from retailkit.models.weights import reason

if TYPE_CHECKING:
    import openvino

KNOWN_LIBRARIES = ("retailkit", "timm", "torch", "torchvision", "transformers")  # whose layers are known by their names
MOST_NETWORKS = 8  # compiled ones that a process keeps: tens of megabytes each
TOLERANCE = 1e-4  # largest difference between a compiled network and PyTorch, as a share of the largest value
TEXTS_AT_ONCE = 16  # the fewer, the less padding; the more, the less overhead

# -- Compiling the encoder.


class CompiledEncoder(nn.Module):
    """Stands in for an image encoder, with the weights of the first call, wherever no gradient is needed.

    On a CPU that is OpenVINO in float32, whose values differ by rounding: below 1e-5 of the largest one. They do not
    depend on how images are divided into batches. On other devices it is PyTorch itself, as it is, after a warning, for
    a network of timm that cannot be compiled.
    """

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.original, self._networks = encoder, {}  # by height and width
        self.name, self.dim, self.stride, self.size = encoder.name, encoder.dim, encoder.stride, encoder.size

    @property
    def mean(self) -> Tensor:
        """The mean colour (3,1,1) that the encoder subtracts."""
        return self.original.mean

    def forward_map(self, images: Tensor) -> Tensor:
        """Return the last feature map (B,D,h,w) of images (B,3,H,W) in [0,1]."""
        if images.device.type != "cpu":
            return self.original.forward_map(images)
        side = tuple(images.shape[2:])  # paddings are computed from it, so that a graph serves one size
        if side not in self._networks:
            self._networks[side] = _network_or_none(self.original, side)
        if (network := self._networks[side]) is None:
            return self.original.forward_map(images)
        parts = images.detach().float().contiguous().split(images_at_once(*side))
        return torch.cat([_run(network, images=part) for part in parts])

    def forward(self, images: Tensor) -> Tensor:
        """Return the average of the last feature map, (B,D)."""
        return self.forward_map(images).mean((2, 3))


class CompiledTransformer(nn.Module):
    """Stands in for a frozen transformer in the same way as `CompiledEncoder` for an image encoder."""

    def __init__(self, encoder: TransformerEncoder) -> None:
        super().__init__()
        self.original, self.dim, self._network = encoder, encoder.dim, None

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector (B,D) per text."""
        if self.original.network.device.type != "cpu":
            return self.original(texts)
        self._network = self._network or _network(self.original, ())
        tokens = self.original.tokenize(texts)
        ids, mask = (torch.tensor([getattr(t, name) for t in tokens]) for name in ("ids", "attention_mask"))
        return _run(self._network, ids=ids, mask=mask)


class _Only(nn.Module):
    """One method of a module under the name that an exporter calls."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.module, self.method)(*inputs)


def compiled(model: ProductClassifier, frozen_only: bool = False) -> ProductClassifier:
    """Return a model with the same weights whose image encoder is compiled; a model without one stays as it is.

    Of an ensemble, those of all members are. Last blocks that learn above a frozen encoder (`LastBlocks`) are compiled
    with it, unless `frozen_only` asks for a model that can go on learning, or whose `encode_frozen` is needed.
    """
    if isinstance(model, Ensemble):
        return model.with_members([compiled(member, frozen_only) for member in model.members])
    encoder, pooling = model.image_encoder, model.pooling
    if encoder is None or isinstance(encoder, CompiledEncoder):
        return model
    if isinstance(pooling, LastBlocks) and not frozen_only:
        encoder, pooling = pooling.rejoined(encoder), pooling.inner
    return model.with_parts(image_encoder=CompiledEncoder(encoder), pooling=pooling)


def _reads_fast(model: ProductClassifier) -> ProductClassifier:
    """Return a model with the same weights whose text encoder is compiled, if it is a frozen transformer."""
    encoder = model.text_encoder
    if not (isinstance(encoder, TransformerEncoder) and encoder.frozen and encoder.tokenizer):
        return model
    return model.with_parts(text_encoder=CompiledTransformer(encoder))


def _network_or_none(encoder: ImageEncoder, side: tuple[int, ...]) -> openvino.CompiledModel | None:
    """Return an image encoder compiled for one size; None, after a warning, where it cannot be or gives other values.

    Only a network that was chosen by its name in timm is compared: the others are compared by the tests.
    """
    if not encoder.name.startswith("timm:"):
        return _network(encoder, side)
    images = torch.linspace(0, 1, 3 * side[0] * side[1]).reshape(1, 3, *side)
    with evaluating(encoder):
        expected = encoder.forward_map(images)
    try:
        network = _network(encoder, side)
        difference = (_run(network, images=images) - expected).abs().max() / expected.abs().max()
        problem = "" if difference <= TOLERANCE else f"its values differ by {difference:.1g} of the largest"
    except RuntimeError as error:  # of the exporter or of OpenVINO
        problem = reason(error)
    if not problem:
        return network
    warnings.warn(f"{encoder.name} runs in PyTorch, which is slower: OpenVINO cannot run it ({problem})", stacklevel=2)
    return None


_NETWORKS: dict[tuple, openvino.CompiledModel] = {}  # those asked for last
_LOCK = threading.Lock()  # the explanation tool asks from several threads


def _network(encoder: ImageEncoder | TransformerEncoder, side: tuple[int, ...]) -> openvino.CompiledModel:
    """Return an encoder compiled for images of one size, or for texts; the same one is compiled once in a process.

    The graph of a frozen encoder is kept in the cache, because writing one takes seconds. What a notebook has changed
    in a network is not seen from outside, so that a network of other classes than a library's is always made anew.
    """

    def graph() -> bytes:
        if side:
            own = _Only(encoder.for_side(*side).cpu(), "forward_map")
            return to_onnx(own, {"images": torch.full((2, 3, *side), 0.5)}, "maps")
        own = _Only(copy.deepcopy(encoder).cpu(), "encode_tokens")
        ids = torch.ones(2, 8, dtype=torch.long)
        # With padding in the example, or the exporter would leave the mask out.
        return to_onnx(own, {"ids": ids, "mask": ids.tril(6)}, "vectors", {0: "batch", 1: "tokens"})

    threads = torch.get_num_threads()
    if not all(map(_as_published, encoder.modules())):
        return openvino_network(graph(), threads)
    tensors = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    built = [repr(encoder), encoder.name, getattr(encoder, "config", None), getattr(encoder, "pool", None)]
    made = digest(*built, tensors, side, code_fingerprint("retailkit.models.encoders", "retailkit.inference"))
    with _LOCK:
        network = _NETWORKS.pop(key := (made, threads), None)
        if network is None:
            network = openvino_network(_kept_graph(made, graph) if encoder.frozen else graph(), threads)
        while len(_NETWORKS) >= MOST_NETWORKS:
            _NETWORKS.pop(next(iter(_NETWORKS)))
        _NETWORKS[key] = network  # now the last one that was asked for
        return network


def _as_published(module: nn.Module) -> bool:
    """Return whether a layer does what its library's source says."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    replaced = {"forward", "forward_map", "encode_tokens"} & vars(module).keys()
    return type(module).__module__.partition(".")[0] in KNOWN_LIBRARIES and not hooks and not replaced


def _kept_graph(key: str, graph: Callable[[], bytes]) -> bytes:
    kept = kept_tensors("graphs", key, lambda: {"onnx": torch.frombuffer(bytearray(graph()), dtype=torch.uint8)})
    return kept["onnx"].numpy().tobytes()


def to_onnx(module: nn.Module, inputs: dict[str, Tensor], output: str, free: dict[int, str] | None = None) -> bytes:
    """Return a module on the CPU that maps named inputs to one tensor, called `output`, as an ONNX graph.

    The module is put into evaluation mode, and the exporter computes batch normalisation into the convolutions before
    it. `inputs` are examples. Their axes in `free`, with a name for each, may have any length; None stands for the
    first axis. Give no random numbers: augmentation may be drawing some.
    """
    file, free = io.BytesIO(), free or {0: "batch"}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # that sizes become constants, and that this exporter is the older one
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            file,
            dynamo=False,
            opset_version=17,
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=dict.fromkeys(inputs, free) | {output: {0: "batch"}},
        )
    return file.getvalue()


def openvino_network(graph: bytes, threads: int) -> openvino.CompiledModel:
    """Return an ONNX graph compiled by OpenVINO, in float32 on so many threads of the CPU."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # else a processor with bfloat16 would use that
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on one batch
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # else two processes would share one core
    }
    core = openvino.Core()
    return core.compile_model(core.read_model(graph, b""), "CPU", options)


def _run(network: openvino.CompiledModel, **inputs: Tensor) -> Tensor:
    request = network.create_infer_request()  # each thread of the explanation tool needs its own
    request.infer({name: value.numpy() for name, value in inputs.items()}, share_inputs=True)
    return torch.tensor(request.get_output_tensor().data)


def images_at_once(height: int, width: int) -> int:
    """Return how many images a CPU takes per forward pass: it is fastest where a layer's output fits into its cache."""
    return min(16, max(4, 2**17 // (height * width)))


# -- Predicting.


class Predictor:
    """Probabilities of many images, fast; the model itself is left untouched.

    Make another predictor after the model's weights have changed. `size` is the side in pixels of the images to come;
    None takes the model's input size.
    """

    def __init__(self, model: ProductClassifier, size: int | None = None) -> None:
        self.model, self.fast = model, _reads_fast(compiled(model))
        self.size = model.input_size if size is None else size
        self.device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        if self.size < 1:
            raise UsageError(f"size={self.size}: it must be at least 1")
        self.batch_size = images_at_once(self.size, self.size) if self.device.type == "cpu" else 64

    def __call__(self, images: Tensor | None = None, texts: Sequence[str | None] | str | None = None) -> Tensor:
        """Return probs (B,K) of images (B,3,size,size) in [0,1] and B texts, or one for all.

        What the model does not use is ignored. Other shapes, values or numbers, or nothing to use, are a `UserError`.
        """
        modalities = self.model.modalities
        image = self.encode_image(images) if "image" in modalities and images is not None else None
        if texts is None or "text" not in modalities:
            return self.classify(image)
        texts = [texts] * (1 if image is None else len(image.values)) if isinstance(texts, str) else list(texts)
        if image is not None and len(texts) != len(image.values):
            raise UserError(f"{len(texts)} texts for {len(image.values)} images; give one text each, or one for all")
        return self.classify(image, self.encode_text(texts))

    def encode_image(self, images: Tensor) -> Features:
        """Return features of images (B,3,size,size) in [0,1], as `model.encode_image` does."""
        images = self._checked(images)
        return self._encoded(lambda rows: images[rows], len(images))

    def encode_perturbed(self, image: Tensor, masks: Tensor, baseline: Tensor) -> Features:
        """Return features of N variants of one image (3,size,size), never holding more than a batch of them.

        Masks (N,size,size) or (N,1,size,size), bool or float in [0,1], are 1 where the image is kept; elsewhere the
        baseline (3,size,size), or a colour (3,1,1), takes its place.
        """
        image = self._checked(image[None])[0].to(self.device)
        baseline = in_range(baseline, "the baseline").to(self.device)
        masks = masks.reshape(len(masks), 1, self.size, self.size)
        masks = masks if masks.dtype == torch.bool else in_range(masks, "masks")
        return self._encoded(lambda rows: composite(image, masks[rows].to(self.device), baseline), len(masks))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Return features of texts, as `model.encode_text` does; equal texts are encoded once.

        A text is encoded beside texts of about its length, since a batch is padded to its longest.
        """
        distinct = sorted(dict.fromkeys(texts), key=lambda text: len(text or ""))
        starts = range(0, max(1, len(distinct)), TEXTS_AT_ONCE)
        with evaluating(self.model):
            encoded = [self.fast.encode_text(distinct[start : start + TEXTS_AT_ONCE]) for start in starts]
        features = Features.joined(encoded)
        place = {text: row for row, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in texts], dtype=torch.long, device=features.values.device)
        return features.rows(rows)

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return probs (B,K) of features, row by row as `model.classify` pairs them."""
        with evaluating(self.model):
            probs = self.model.classify(image_features, text_features).float().softmax(-1)
        return probs.clone()  # outside of inference mode: an ordinary tensor

    def _encoded(self, images: Callable[[slice], Tensor], count: int) -> Features:
        if count == 0:
            raise UserError("no images to encode; give at least one")
        starts = range(0, count, self.batch_size)
        with evaluating(self.model):
            batches = (images(slice(start, start + self.batch_size)) for start in starts)
            parts = [self.fast.encode_image(batch.to(self.device)) for batch in batches]
        return Features.joined(parts)

    def _checked(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.size, self.size):
            wanted = f"(N, 3, {self.size}, {self.size})"
            raise UserError(f"images: the shape is {tuple(images.shape)}, not {wanted}; resize, or give size=")
        return in_range(images, "images")


class SharedPredictor(Predictor):
    """A predictor for many heads on the same frozen encoders: what is encoded once is encoded for all of them."""

    def __init__(self, model: ProductClassifier, size: int | None = None) -> None:
        super().__init__(model, size)
        self._known: dict[tuple[int, int, int], Tensor] = {}
        self._read: dict[str | None, Features] = {}

    def with_model(self, model: ProductClassifier) -> SharedPredictor:
        """Return the same predictor for another model; its encoders must have the same weights."""
        other = copy.copy(self)
        other.model, other.fast = model, _reads_fast(compiled(model))
        return other

    def encode_perturbed(self, image: Tensor, masks: Tensor, baseline: Tensor) -> Features:
        """Return features of N variants of one image, see `Predictor`."""
        known = tuple(hash(part.numpy().tobytes()) for part in (image, baseline))
        keys = [(*known, hash(mask.numpy().tobytes())) for mask in masks]
        if fresh := [row for row, key in enumerate(keys) if key not in self._known]:
            values = super().encode_perturbed(image, masks[fresh], baseline).values
            self._known.update(zip((keys[row] for row in fresh), values, strict=True))
        return Features.present(torch.stack([self._known[key] for key in keys]))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Return features of texts, see `Predictor`."""
        if fresh := [text for text in dict.fromkeys(texts) if text not in self._read]:
            features = super().encode_text(fresh)
            self._read.update((text, features.rows(slice(row, row + 1))) for row, text in enumerate(fresh))
        return Features.joined([self._read[text] for text in texts])


def composite(image: Tensor, masks: Tensor, baseline: Tensor) -> Tensor:
    """Return `image` (3,H,W) where masks (N,1,H,W) are 1, `baseline` where they are 0, and mixtures between."""
    if masks.dtype == torch.bool:
        return torch.where(masks, image, baseline)
    return baseline + masks * (image - baseline)


def in_range(values: Tensor, what: str) -> Tensor:
    """Return values as float32; raise UserError unless they are floats in [0, 1]."""
    if not values.is_floating_point():
        raise UserError(f"{what}: values are {values.dtype}; give floats in [0, 1] (divide bytes by 255)")
    low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # NaN too
        raise UserError(f"{what}: values reach from {low:g} to {high:g}, not within [0, 1]; rescale or clip them")
    return values.float()
