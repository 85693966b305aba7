"""The fast way to push many perturbed images through a model.

An explanation asks for thousands of variants of one picture. The image encoder does nearly all of that work, so it
alone is made fast; poolings, text encoders and heads run as they are. Each backend is one way of computing the
encoder's last feature map:

    eager    the model's own code, the reference
    folded   batch normalisation folded into the convolutions; exact
    bf16     folded, in bfloat16 where the device is fast at it; rounding can move probabilities
    onnx     folded, in ONNX Runtime, on the CPU; exact

`auto` takes the fastest whose probabilities agree with `eager`. Small batches stay in the processor's cache and are
part of the gain.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from tqdm import tqdm

from retailkit.config import UsageError, UserError, pick
from retailkit.models.classifier import Features, ProductClassifier, evaluating
from retailkit.models.encoders import ImageEncoder

EXAMPLES = 4  # pictures that backends are judged by, and as many masked variants
ROUNDS = 2  # timed passes a backend; the quickest counts
MARGIN = 2  # pictures to come may differ more than the examples: accepted is the tolerance divided by this
TEXTS_AT_ONCE = 16  # the fewer, the less padding; the more, the less overhead

ForwardMap = Callable[[Tensor], Tensor]


def fold(encoder: ImageEncoder, size: int) -> ImageEncoder:
    """Return a copy of `encoder` in evaluation mode whose convolutions do the work of the normalisation after them.

    Which layers follow each other is seen by sending a picture through.

    Args:
        encoder: stays as it is.
        size: side in pixels of that picture.
    """
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensor is kept so that its id stays its own
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made_by[id(output)] = (module, output)
        elif id(inputs[0]) in made_by:
            pairs[module] = made_by[id(inputs[0])][0]

    layers = [m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    with torch.inference_mode(False), torch.no_grad():
        encoder.forward_map(torch.zeros(1, 3, size, size, device=encoder.mean.device))
        for hook in hooks:
            hook.remove()
        for norm, conv in pairs.items():
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
        _replace(encoder, {norm: _after(norm) for norm in pairs})
    return encoder.requires_grad_(False).to(memory_format=torch.channels_last)


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what a layer does besides normalising: timm's have an activation inside."""
    return getattr(norm, "act", nn.Identity())


def _replace(root: nn.Module, substitutes: dict[nn.Module, nn.Module]) -> None:
    for module in list(root.modules()):
        for name, child in module.named_children():
            if child in substitutes:
                setattr(module, name, substitutes[child])


def _eager(encoder: ImageEncoder, size: int) -> ForwardMap:
    return encoder.forward_map


def _folded(encoder: ImageEncoder, size: int) -> ForwardMap:
    return fold(encoder, size).forward_map


def _bf16(encoder: ImageEncoder, size: int) -> ForwardMap:
    device = encoder.mean.device.type
    if not _computes_bf16(device):
        raise UserError(f"this {device} does not compute in bfloat16")
    folded = fold(encoder, size)

    def forward_map(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return folded.forward_map(images).float()

    return forward_map


def _computes_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onnx(encoder: ImageEncoder, size: int) -> ForwardMap:
    if encoder.mean.device.type != "cpu":
        raise UserError(f"ONNX Runtime computes on the CPU here, and the model is on {encoder.mean.device}")
    try:
        import onnx  # noqa: F401  torch's exporter needs it
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed; run: pip install onnx onnxruntime") from None
    folded, sessions = fold(encoder, size), {}

    def forward_map(images: Tensor) -> Tensor:
        side = images.shape[2:]  # paddings are computed from it, so that a graph serves one size
        if side not in sessions:
            sessions[side] = _session(folded, images[:2].shape)
        (maps,) = sessions[side].run(None, {"images": images.float().contiguous().cpu().numpy()})
        return torch.from_numpy(maps).to(images.device)

    return forward_map


class _MapOnly(nn.Module):
    """`forward_map` under the name that an exporter calls."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.forward_map(images)


def _session(encoder: ImageEncoder, shape: Sequence[int]):
    """Return an ONNX Runtime session of `encoder.forward_map` for any number of images of one size."""
    return onnx_session(to_onnx(_MapOnly(encoder), shape, "maps"), torch.get_num_threads())


def to_onnx(module: nn.Module, shape: Sequence[int], output: str) -> bytes:
    """Return a module that maps images to one tensor as an ONNX graph for any number of images of one size.

    Args:
        module: `forward(images)` on the CPU; it is put into evaluation mode.
        shape: of images to trace it with, (B,3,H,W); B does not matter.
        output: name of what it returns. The input is called `images`.
    """
    file, free = io.BytesIO(), {0: "batch"}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # that sizes become constants, and that this exporter is the older one
            torch.onnx.export(
                module.eval(),
                (torch.rand(shape),),
                file,
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=[output],
                dynamic_axes={"images": free, output: free},
            )
    finally:
        logger.setLevel(level)
    return file.getvalue()


def onnx_session(graph: bytes, threads: int):
    """Return an ONNX Runtime session of a graph on so many threads of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Spinning threads starve others, torch's own among them: with them it takes twice the time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# Each is called as backend(encoder, size) and returns what stands in for `encoder.forward_map`. Whatever it raises is
# the reason why it is not available.
BACKENDS: dict[str, Callable[[ImageEncoder, int], ForwardMap]] = {
    "eager": _eager,
    "folded": _folded,
    "bf16": _bf16,
    "onnx": _onnx,
}

# Seconds a picture by architecture, size, device, threads, batch size and backend: measured once a process.
_SECONDS: dict[tuple, float] = {}


@dataclass
class _Candidate:
    """A backend that is being judged: the model with it, once built, and what speaks against it, if anything."""

    name: str
    seconds: float = math.inf
    agreement: float = math.nan
    note: str = ""
    twin: ProductClassifier | None = None


class Predictor:
    """Probabilities of many images, fast; the model itself is left untouched.

    Weights are taken as they are when the predictor is made: make another one after training on.

    Args:
        model: any model of `models.build`, on any device.
        size: side in pixels of the images to come; None takes the model's input size.
        backend: key of `BACKENDS`, or `auto`. One that is not available or disagrees gives way to `eager`, and
            `report` says why.
        batch_size: images a pass; None takes a few on a CPU, 64 elsewhere. It does not change results.
        tolerance: largest difference in any probability from `eager` that you can bear; over the examples, half of
            it is accepted, as other pictures may differ more.
        examples: (N,3,size,size) in [0,1], pictures to judge backends by; give the picture that is about to be
            explained. None makes some up: coloured noise with the spectrum of photos. Half of what is judged by are
            the same pictures with random rectangles painted grey.

    Attributes:
        backend: the chosen one.
        fast: the model with that backend in its image encoder; all weights are shared.
        report: one row a backend: `backend`, `seconds` an image (NaN where not measured), `ratio` (times as fast as
            eager), `agreement` (largest difference in probability from eager), `chosen`, and `note`, which says why
            one was not taken.

    Raises:
        UsageError: unknown backend, or a size, batch size or tolerance out of range.
        UserError: examples that are no such images.
    """

    def __init__(
        self,
        model: ProductClassifier,
        size: int | None = None,
        backend: str = "auto",
        batch_size: int | None = None,
        tolerance: float = 0.01,
        examples: Tensor | None = None,
    ) -> None:
        pick((*BACKENDS, "auto"), backend, "backend")
        self.model, self.size, self.tolerance = model, model.input_size if size is None else size, tolerance
        self.device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.batch_size = _batch_size(self.device) if batch_size is None else batch_size
        if self.size < 1 or self.batch_size < 1 or not 0 <= tolerance <= 1:
            given = f"size={self.size}, batch_size={self.batch_size}, tolerance={tolerance}"
            raise UsageError(f"{given}: sizes must be at least 1, and the tolerance within 0 and 1")
        self.fast = model
        if model.image_encoder is None or backend == "eager":
            why = "asked for, not measured" if model.image_encoder else "the model has no image encoder to make fast"
            self.backend, self.report = "eager", _report([_Candidate("eager", note=why)], "eager")
        else:
            self._choose(backend, _made_up(self.size) if examples is None else self._checked(examples, "examples"))

    def __repr__(self) -> str:
        return f"Predictor({self.backend}, size={self.size}, batch_size={self.batch_size}, device={self.device})"

    # -- What callers use.

    def __call__(self, images: Tensor | None = None, texts: Sequence[str | None] | str | None = None) -> Tensor:
        """Return probs (B,K).

        Args:
            images: (B,3,size,size) float in [0,1].
            texts: B texts, or one for all; what the model does not use is ignored.

        Raises:
            UserError: other shapes or values, numbers that do not match, or nothing that this model uses.
        """
        used = images if "image" in self.model.modalities else None
        return self._classified(None if used is None else self.encode_image(used), texts)

    def perturbed(
        self, image: Tensor, masks: Tensor, baseline: Tensor, texts: Sequence[str | None] | str | None = None
    ) -> Tensor:
        """Return probs (N,K) of N variants of one picture, never holding more than a batch of them.

        Args:
            image: (3,size,size) float in [0,1].
            masks: (N,size,size) or (N,1,size,size), bool or float in [0,1]; 1 keeps the picture.
            baseline: (3,size,size), or (3,1,1) for a colour, in [0,1]: what takes its place.
            texts: N texts, or one for all.

        Raises:
            UserError: see `__call__`.
        """
        return self._classified(self.encode_perturbed(image, masks, baseline), texts)

    def encode_image(self, images: Tensor) -> Features:
        """Return features of images (B,3,size,size) in [0,1], as `model.encode_image` does."""
        images = self._checked(images, "images")
        return self._encoded(lambda rows: images[rows], len(images))

    def encode_perturbed(self, image: Tensor, masks: Tensor, baseline: Tensor) -> Features:
        """Return features of N variants of one picture; arguments as of `perturbed`."""
        image = self._checked(image[None] if image.ndim == 3 else image, "image", count=1)[0].to(self.device)
        masks = self._checked_masks(masks)
        if tuple(baseline.shape) not in ((3, 1, 1), tuple(image.shape)):
            raise UserError(f"the baseline is {tuple(baseline.shape)}; give {tuple(image.shape)}, or (3, 1, 1)")
        baseline = _in_range(baseline, "the baseline").to(self.device)

        def variants(rows: slice) -> Tensor:
            return composite(image, masks[rows].to(self.device), baseline)

        return self._encoded(variants, len(masks))

    def encode_text(self, texts: Sequence[str | None]) -> Features:
        """Return features of texts, as `model.encode_text` does.

        Each distinct text is encoded once, beside texts of about its length, since a batch is padded to its longest.
        """
        distinct = sorted(dict.fromkeys(texts), key=lambda text: len(text or ""))
        starts = range(0, max(1, len(distinct)), TEXTS_AT_ONCE)
        with evaluating(self.model):
            found = Features.joined(
                [self.model.encode_text(distinct[start : start + TEXTS_AT_ONCE]) for start in starts]
            )
        place = {text: row for row, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in texts], dtype=torch.long, device=found.values.device)
        return found.rows(rows)

    def classify(self, image_features: Features | None = None, text_features: Features | None = None) -> Tensor:
        """Return probs (B,K) of features, row by row as `model.classify` pairs them."""
        with evaluating(self.model):
            probs = self.model.classify(image_features, text_features).float().softmax(-1)
        return probs.clone()  # outside of inference mode: an ordinary tensor

    # -- The work.

    def _classified(self, image: Features | None, texts: Sequence[str | None] | str | None) -> Tensor:
        if texts is None or "text" not in self.model.modalities:
            return self.classify(image)
        texts = [texts] * (1 if image is None else len(image.values)) if isinstance(texts, str) else list(texts)
        if image is not None and len(texts) != len(image.values):
            raise UserError(f"{len(texts)} texts for {len(image.values)} images; give one text each, or one for all")
        return self.classify(image, self.encode_text(texts))

    def _encoded(self, images: Callable[[slice], Tensor], count: int) -> Features:
        if count == 0:
            raise UserError("no images to encode; give at least one")
        starts = tqdm(range(0, count, self.batch_size), desc="predict", delay=2, mininterval=2, leave=False)
        parts = []
        with evaluating(self.model):
            for start in starts:
                batch = images(slice(start, start + self.batch_size)).to(self.device)
                parts.append(self.fast.encode_image(batch))
        return Features.joined(parts)

    # -- Which backend.

    def _choose(self, backend: str, examples: Tensor) -> None:
        examples = torch.cat([examples[:EXAMPLES], _masked(examples[:EXAMPLES])])
        reference = self._probs(self.model, examples)
        names = list(BACKENDS) if backend == "auto" else ["eager", backend]
        found = {name: _Candidate(name, _SECONDS.get(self._key(name), math.inf)) for name in names}
        found["eager"].twin, found["eager"].agreement = self.model, 0.0
        new = [c for c in found.values() if math.isinf(c.seconds)]
        for candidate in new:
            self._judge(candidate, examples, reference)
        self._time([c for c in new if c.twin is not None], examples)
        # Asked for by name, a backend need not be the fastest.
        for candidate in sorted(found.values(), key=lambda c: (c.name != backend, c.seconds)):
            self._judge(candidate, examples, reference)
            if not candidate.note:
                break
        self.backend, self.fast = candidate.name, candidate.twin
        self.report = _report(found.values(), candidate.name)

    def _judge(self, candidate: _Candidate, examples: Tensor, reference: Tensor) -> None:
        """Build a backend, unless that is done, and note what speaks against it."""
        if candidate.twin is not None or candidate.note:
            return
        try:
            twin = self._with(BACKENDS[candidate.name](self.model.image_encoder, self.size))
            candidate.agreement = float((self._probs(twin, examples) - reference).abs().max())
            candidate.twin = twin
        except Exception as error:
            # A backend may fail in whatever way its library likes; predictions go on without it.
            candidate.note = (str(error).splitlines() or [type(error).__name__])[0][:200]
            return
        accepted = self.tolerance / MARGIN
        if not candidate.agreement <= accepted:  # NaN too
            candidate.note = f"probabilities differ by {candidate.agreement:.3g}; accepted is {accepted:g}"

    def _time(self, candidates: list[_Candidate], examples: Tensor) -> None:
        """Time by turns, so that a busy moment hits all alike; the next predictor of this kind need not."""
        for _ in range(ROUNDS):
            for candidate in candidates:
                start = time.perf_counter()
                self._probs(candidate.twin, examples)
                candidate.seconds = min(candidate.seconds, (time.perf_counter() - start) / len(examples))
        _SECONDS.update({self._key(c.name): c.seconds for c in candidates})

    def _probs(self, model: ProductClassifier, images: Tensor) -> Tensor:
        """Return probs (B,K) of images without texts, on the CPU; `model` is ours or a twin of it."""
        with evaluating(self.model):
            parts = [model.encode_image(part.to(self.device)) for part in images.split(self.batch_size)]
            return model.classify(Features.joined(parts), None).float().softmax(-1).cpu()

    def _with(self, forward_map: ForwardMap) -> ProductClassifier:
        """Return a twin of the model, all weights shared, whose image encoder computes its map by `forward_map`."""
        twin, encoder = copy.copy(self.model), copy.copy(self.model.image_encoder)
        encoder.forward_map = forward_map
        twin._modules = {**self.model._modules, "image_encoder": encoder}
        return twin

    def _key(self, name: str) -> tuple:
        parts = repr(self.model.image_encoder), repr(self.model.pooling), self.model.pooling.dim
        return (*parts, self.size, str(self.device), torch.get_num_threads(), self.batch_size, name, BACKENDS[name])

    # -- What may come in.

    def _checked(self, images: Tensor, what: str, count: int | None = None) -> Tensor:
        wanted = f"({count or 'N'}, 3, {self.size}, {self.size})"
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.size, self.size) or count not in (None, len(images)):
            raise UserError(f"{what}: the shape is {tuple(images.shape)}, not {wanted}; resize, or give size=")
        return _in_range(images, what)

    def _checked_masks(self, masks: Tensor) -> Tensor:
        side = (self.size, self.size)
        if masks.ndim not in (3, 4) or tuple(masks.shape[-2:]) != side or (masks.ndim == 4 and masks.shape[1] != 1):
            raise UserError(f"masks: the shape is {tuple(masks.shape)}, not (N, {self.size}, {self.size}); resize them")
        masks = masks.view(len(masks), 1, *side)
        return masks if masks.dtype == torch.bool else _in_range(masks, "masks")


def composite(image: Tensor, masks: Tensor, baseline: Tensor) -> Tensor:
    """Return `image` where masks are 1, `baseline` where they are 0, (N,3,H,W).

    Args:
        image: (3,H,W).
        masks: (N,1,H,W) bool, or float in [0,1] that mixes the two.
        baseline: (3,H,W) or (3,1,1).
    """
    if masks.dtype == torch.bool:
        return torch.where(masks, image, baseline)
    return baseline + masks * (image - baseline)


def _in_range(values: Tensor, what: str) -> Tensor:
    if not values.is_floating_point():
        raise UserError(f"{what}: values are {values.dtype}; give floats in [0, 1] (divide bytes by 255)")
    low, high = (float(v) for v in values.aminmax()) if values.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= 1):  # NaN too
        raise UserError(f"{what}: values reach from {low:g} to {high:g}, not within [0, 1]; rescale or clip them")
    return values.float()


def _batch_size(device: torch.device) -> int:
    # A CPU is fastest where a layer's output still fits into its cache.
    return max(4, 2 * torch.get_num_threads()) if device.type == "cpu" else 64


def _made_up(size: int) -> Tensor:
    """Return pictures (EXAMPLES,3,size,size) of noise whose amplitude falls with frequency as that of photos does."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(EXAMPLES, 3, size, size)
    for cells in (2, 4, 8, 16, 32, 64):
        noise = torch.randn(EXAMPLES, 3, cells, cells, generator=generator)
        pictures += F.interpolate(noise, (size, size), mode="bicubic") / cells**0.5
    return (0.5 + pictures / 4).clamp(0, 1)


def _masked(pictures: Tensor) -> Tensor:
    """Return pictures (N,3,H,W) with about half of a grid of rectangles painted grey."""
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(len(pictures), 1, 7, 7, generator=generator) < 0.5
    masks = F.interpolate(kept.float(), pictures.shape[2:], mode="nearest")
    return 0.5 + masks.to(pictures.device) * (pictures - 0.5)


def _report(candidates: Iterable[_Candidate], chosen: str) -> pd.DataFrame:
    rows = [(c.name, c.seconds, c.agreement, c.name == chosen, c.note) for c in candidates]
    report = pd.DataFrame(rows, columns=["backend", "seconds", "agreement", "chosen", "note"])
    report["seconds"] = report["seconds"].replace(math.inf, math.nan)
    report.insert(2, "ratio", report.loc[report["backend"] == "eager", "seconds"].item() / report["seconds"])
    return report.sort_values("seconds", ignore_index=True)
