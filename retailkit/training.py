"""One loop for every model: fit, evaluate, fit_or_load.

`fit` runs in two modes. `frozen` encodes every picture once (several augmented views if asked), keeps the
features on disk and trains the rest of the model on them: minutes become seconds. `finetune` trains everything.
Both go through the same epochs, optimiser, schedule, early stopping and checkpoints, on one CPU, one GPU or
several processes (`accelerate launch`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader
from tqdm import tqdm

from retailkit import data as datasets
from retailkit import models
from retailkit.cache import code_fingerprint, digest, file_identity, kept_tensors, replacing
from retailkit.config import UsageError, UserError, cache_dir, device, pick
from retailkit.data.augment import AUGMENTATIONS
from retailkit.data.table import Batch, ProductData, ProductDataset, collate
from retailkit.inference import compiled
from retailkit.losses import Criterion, criterion
from retailkit.metrics import Evaluation
from retailkit.models.classifier import Features, ProductClassifier, evaluating

MODES = ("frozen", "finetune")
POOLED_AT_ONCE = 128  # pictures: a map passes through LCA as many windows


class TrainingError(UserError):
    """Training cannot go on; the message says at which step and what was kept."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Sizes are pixels, rates are per step.

    Attributes:
        mode: `frozen` (encoders stay as they are) or `finetune`.
        epochs: passes over the training split.
        batch_size: images a step.
        lr: peak learning rate of the head (AdamW, linear warm-up, cosine decay to zero).
        encoder_lr: peak learning rate of the encoders in `finetune` mode.
        weight_decay: decoupled weight decay.
        warmup: share of all steps that the learning rate takes to rise.
        criterion: name in `losses.CRITERIA`.
        criterion_options: its options.
        augment: name in `AUGMENTATIONS`.
        train_size: side of training images; None takes the model's input size. Smaller is faster, and test
            images may be larger (Touvron et al. 2019).
        views: augmented views a picture whose features are kept, in `frozen` mode.
        ema: decay of the exponential moving average of weights; 0 keeps the last weights.
        bf16: compute in bfloat16 where the device is faster so.
        patience: epochs in a row without a better validation accuracy that end it; None never stops early.
        workers: processes that load images.
        seed: of weights, order and augmentation.
    """

    mode: str = "frozen"
    epochs: int = 60
    batch_size: int = 32
    lr: float = 2e-3
    encoder_lr: float = 5e-4
    weight_decay: float = 0.02
    warmup: float = 0.1
    criterion: str = "label_smoothing"
    criterion_options: dict[str, Any] = field(default_factory=dict)
    augment: str = "none"
    train_size: int | None = None
    views: int = 1
    ema: float = 0.0
    bf16: bool = True
    patience: int | None = None
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        pick(MODES, self.mode, "training mode")
        pick(AUGMENTATIONS, self.augment, "augmentation")
        if min(self.epochs, self.batch_size, self.views, 1 if self.patience is None else self.patience) < 1:
            raise UsageError("epochs, batch_size, views and patience must be at least 1")


@dataclass
class History:
    """What happened while training.

    Attributes:
        epochs: one row an epoch: `epoch`, `loss` (mean of the steps), `lr`, `seconds`, and `val_top1`,
            `val_loss` where there is a validation split.
        best_epoch: epoch whose weights were kept.
        seconds: wall time of all epochs, encoding included.
    """

    epochs: pd.DataFrame
    best_epoch: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        rows = json.loads(self.epochs.to_json(orient="records"))
        return {"epochs": rows, "best_epoch": self.best_epoch, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> History:
        """Read what `to_dict` wrote."""
        return cls(pd.DataFrame(plain["epochs"]), plain["best_epoch"], plain["seconds"])


# -- Encoded splits: what `frozen` mode trains on.


@dataclass
class EncodedBatch:
    """Features in place of pixels and words; stands in for `Batch` when the encoders are frozen."""

    image: Features | None
    text: Features | None
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str | torch.device) -> EncodedBatch:
        """Return this batch on `device`."""
        return EncodedBatch(_move(self.image, device), _move(self.text, device), self.labels.to(device))


def _move(features: Features | None, device: str | torch.device) -> Features | None:
    return None if features is None else Features(features.values.to(device), features.available.to(device))


class EncodedDataset(torch.utils.data.Dataset):
    """A split as cached features. `index` may be a list.

    Attributes:
        rows: (N,) rows of the data set's table.
    """

    def __init__(
        self, image: Features | None, text: Features | None, labels: Tensor, rows: np.ndarray | None = None
    ) -> None:
        self.image, self.text, self.labels = image, text, labels
        self.rows = np.arange(len(labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: np.ndarray) -> EncodedDataset:
        """Return the features of some pictures only, given as positions."""
        part = self[list(positions)]
        return EncodedDataset(part.image, part.text, part.labels, self.rows[positions])

    def __getitem__(self, index: list[int] | int) -> EncodedBatch:
        rows = torch.as_tensor(index).reshape(-1)
        some = [features and features.rows(rows) for features in (self.image, self.text)]
        return EncodedBatch(*some, self.labels[rows])

    def __getitems__(self, index: list[int]) -> list[EncodedBatch]:
        """Let the loader draw a whole batch at once."""
        return [self[index]]


def encode(
    model: ProductClassifier,
    dataset: ProductDataset,
    bf16: bool = False,
    see: Callable[[Tensor], Features] | None = None,
) -> EncodedDataset:
    """Run the model's encoders over a split once, in evaluation mode.

    Args:
        model: its `encode_text` is used as it is.
        dataset: the split, at the size it was made with.
        bf16: compute in bfloat16 where the device is faster so.
        see: what encodes images (B,3,H,W); None takes `model.encode_frozen`, whose result further training may use.
            `model.encode_image` gives finished features. It computes where the model is.

    Returns:
        Float32 features on the CPU, in the order of `dataset`.
    """
    images, texts = [], []
    with _placed(model, stay=see is not None) as where, evaluating(model), _autocast(where.type, bf16):
        see = see or model.encode_frozen
        for batch in tqdm(_loader(dataset, 32), desc="encode", mininterval=2, leave=False, disable=len(dataset) < 100):
            batch = batch.to(where)
            if "image" in model.modalities:
                images.append(_to_cpu(see(batch.images)))
            if "text" in model.modalities:
                texts.append(_to_cpu(model.encode_text(batch.texts)))
    image, text = (Features.joined(parts) if parts else None for parts in (images, texts))
    return EncodedDataset(image, text, torch.tensor(dataset.labels), dataset.rows)


def _to_cpu(features: Features) -> Features:
    return Features(features.values.float().cpu().contiguous(), features.available.cpu())


def encode_cached(model: ProductClassifier, dataset: ProductDataset, views: int, config: TrainConfig) -> EncodedDataset:
    """Return `views` encodings of a split laid end to end, from the disk cache where they are there already.

    The key covers the encoders' weights and code, the files, the words, the transform and the seed.
    """
    first = config.seed * 10_007  # of the views: no two seeds share one
    key = digest(
        encoder_fingerprint(model),
        data_fingerprint(dataset.data, dataset.rows, text="text" in model.modalities),
        [*dataset.appearance, views, config.bf16 and _computes_bf16(torch.device(device()).type)],
        first if dataset.augment else None,
        code_fingerprint("retailkit.models", "retailkit.data.table"),
    )

    def make() -> dict[str, Tensor]:
        parts = []
        for view in range(views):
            with _seeded(first + view):
                parts.append(_pack(encode(model, dataset, config.bf16)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return _unpack(kept_tensors("features", key, make), np.tile(dataset.rows, views))


def _pack(encoded: EncodedDataset) -> dict[str, Tensor]:
    tensors = {"labels": encoded.labels}
    for name, features in (("image", encoded.image), ("text", encoded.text)):
        if features is not None:
            tensors |= {f"{name}.values": features.values, f"{name}.available": features.available}
    return tensors


def _unpack(tensors: dict[str, Tensor], rows: np.ndarray) -> EncodedDataset:
    def features(name: str) -> Features | None:
        values = tensors.get(f"{name}.values")
        return None if values is None else Features(values, tensors[f"{name}.available"])

    return EncodedDataset(features("image"), features("text"), tensors["labels"], rows)


# -- The loop.


class TrainingStep(nn.Module):
    """The loss of one batch as a module, so that several processes synchronise gradients when it is called."""

    def __init__(self, model: ProductClassifier, loss: Criterion, bf16: bool) -> None:
        super().__init__()
        self.model, self.loss, self.bf16 = model, loss, bf16

    def forward(self, batch: Batch | EncodedBatch) -> Tensor:
        """Return the scalar loss of one batch."""
        with _autocast(batch.labels.device.type, self.bf16):
            if isinstance(batch, EncodedBatch):
                return self.model.loss(self.model.pool(batch.image), batch.text, batch.labels, self.loss)
            return self.model.training_loss(batch, self.loss)


def fit(
    model: ProductClassifier,
    train: ProductDataset | EncodedDataset,
    val: ProductDataset | EncodedDataset | None = None,
    config: TrainConfig | None = None,
    resume: str | Path | None = None,
) -> History:
    """Train `model` in place and leave it in evaluation mode with the best weights.

    Args:
        model: what to train; `model.prepare(train, val)` is called first.
        train: training split; its `augment` is replaced by the configuration's. What `encode` made of one is taken as
            it is, and only a head learns from it.
        val: validation split; with it the weights of the epoch with the best top-1 (then the lowest loss) are kept.
        config: how to train.
        resume: file that holds the state after each epoch, the last one included; an interrupted run goes on from it.
            Whoever keeps the model removes it (`fit_and_save`).

    Returns:
        The history of all epochs, and the time of all parts, those before an interrupt included.

    Raises:
        TrainingError: the loss is not finite; the last finished epoch stays in `resume`.
    """
    config = config or TrainConfig()
    started = time.monotonic()
    if not isinstance(train, EncodedDataset):
        model.prepare(train, val)
    if not any(p.requires_grad for p in model.parameters()):
        return History(pd.DataFrame(columns=["epoch", "loss", "lr", "seconds"]), 0, time.monotonic() - started)
    accelerator = Accelerator(cpu=device() == "cpu")
    with _placed(model), _seeded(config.seed):
        loader, val_data = _training_data(model, train, val, config)
        learner = _with_fast_encoder(model, config) if config.mode == "finetune" else model
        loop = _Loop(learner, loader, val_data, config, accelerator, Path(resume) if resume else None)
        history = loop.run()
        model.eval()
        if val_data is not None and model.head.tunes:
            _tune(model, val_data)
    return replace(history, seconds=time.monotonic() - started + loop.seconds_before)


def _with_fast_encoder(model: ProductClassifier, config: TrainConfig) -> ProductClassifier:
    """Return the model, or a twin that shares its weights, whose image encoder is fast if it does not learn."""
    if model.image_encoder is None or not model.image_encoder.frozen:
        return model
    return compiled(model)


def _training_data(
    model: ProductClassifier,
    train: ProductDataset | EncodedDataset,
    val: ProductDataset | EncodedDataset | None,
    config: TrainConfig,
) -> tuple[DataLoader, ProductDataset | EncodedDataset | None]:
    if isinstance(train, EncodedDataset):
        if config.mode != "frozen":
            raise UsageError(f"mode={config.mode!r} needs pictures, not features; give a split, or use mode='frozen'")
        return _frozen_loader(model, train, config), val
    size = config.train_size or train.size
    train = train.with_options(size=size, augment=AUGMENTATIONS[config.augment](size))
    if config.mode == "finetune":
        return _loader(train, config.batch_size, shuffle=True, workers=config.workers), val
    model.freeze()
    loader = _frozen_loader(model, encode_cached(model, train, config.views, config), config)
    return loader, None if val is None else encode_cached(model, val, 1, config)


def _frozen_loader(model: ProductClassifier, encoded: EncodedDataset, config: TrainConfig) -> DataLoader:
    """Standardise the model's features by those of the training pictures, and deal these in random batches."""
    model.fit_scalers(encoded.image, encoded.text)
    order = torch.utils.data.RandomSampler(encoded)
    sampler = torch.utils.data.BatchSampler(order, config.batch_size, drop_last=False)
    return DataLoader(encoded, batch_sampler=sampler, collate_fn=itemgetter(0))


def _tune(model: ProductClassifier, val: ProductDataset | EncodedDataset) -> None:
    """Let the head choose on the validation split what it does not learn by gradient."""
    kept = isinstance(val, EncodedDataset)
    seen = val if kept else encode(model, val, see=model.encode_image)
    with evaluating(model):
        batch = seen[list(range(len(seen)))].to(next(model.parameters()).device)
        model.tune(model.pool(batch.image) if kept else batch.image, batch.text, batch.labels)


def encode_ahead(spec: TrainSpec, data: ProductData) -> None:
    """Fill the cache with what frozen encoders see of each split, so that `fit_or_load` has only heads to train."""
    with _seeded(spec.config.seed):
        model = models.build(spec.model, data.classes, **spec.model_options)
    size = spec.size or model.input_size
    _training_data(model, data.split("train", size), None, spec.config)
    for name in data.splits:
        if name != "train":
            encode_cached(model, data.split(name, size), 1, spec.config)


class _Loop:
    """The state of one training run: what an epoch changes and a checkpoint holds."""

    def __init__(
        self,
        model: ProductClassifier,
        loader: DataLoader,
        val: ProductDataset | EncodedDataset | None,
        config: TrainConfig,
        accelerator: Accelerator,
        resume: Path | None,
    ) -> None:
        self.model, self.val, self.config, self.accelerator, self.resume = (
            model,
            val,
            config,
            accelerator,
            resume,
        )
        model.to(accelerator.device, memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(_parameter_groups(model, config), weight_decay=config.weight_decay)
        self.step, self.optimizer, self.loader = accelerator.prepare(
            TrainingStep(model, criterion(config.criterion, **config.criterion_options), config.bf16),
            optimizer,
            loader,
        )
        steps = len(self.loader) * config.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(config.warmup, steps))
        self.average = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "score": (-math.inf, 0.0), "weights": None}
        self.started, self.seconds_before = time.monotonic(), 0.0  # before: of the parts that were interrupted

    def run(self) -> History:
        first = self._restore()
        quiet = not self.accelerator.is_main_process
        bar = tqdm(range(first, self.config.epochs), desc="train", initial=first, total=self.config.epochs,
                   mininterval=2, disable=quiet)  # fmt: skip
        for epoch in bar:
            if self.config.patience is not None and epoch - self.best["epoch"] >= self.config.patience:
                break
            row = self._epoch(epoch)
            bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_top1") if k in row}, refresh=False)
        if self.best["weights"] is not None:
            self.model.load_state_dict(self.best["weights"])
        self.model.eval()
        return History(pd.DataFrame(self.rows), self.best["epoch"], 0.0)

    def _epoch(self, epoch: int) -> dict[str, float]:
        started = time.monotonic()
        self.model.train()
        with _seeded(self.config.seed * 10_007 + epoch + 1):
            losses = [self._update(batch, epoch) for batch in self._batches(epoch)]
        row = {"epoch": epoch + 1, "loss": float(np.mean(losses)), "lr": self.schedule.get_last_lr()[0]}
        judged = self.average.module if self.average else self.model
        score = (float(epoch), 0.0)  # without a validation split the last epoch is the best one
        if self.val is not None:
            result = evaluate(judged, self.val, bf16=self.config.bf16)
            row["val_top1"], row["val_loss"] = result.top1, result.loss
            score = (result.top1, -result.loss)
        row["seconds"] = time.monotonic() - started
        self.rows.append(row)
        if score > self.best["score"]:
            weights = {k: v.detach().clone() for k, v in judged.state_dict().items()}
            self.best = {"epoch": epoch + 1, "score": score, "weights": weights}
        self._save()
        return row

    def _batches(self, epoch: int) -> Iterator[Batch | EncodedBatch]:
        quiet = not self.accelerator.is_main_process or self.config.mode == "frozen"
        return tqdm(self.loader, desc=f"epoch {epoch + 1}", mininterval=5, leave=False, disable=quiet)

    def _update(self, batch: Batch | EncodedBatch, epoch: int) -> float:
        loss = self.step(batch.to(self.accelerator.device))
        if not torch.isfinite(loss):
            kept = f"; epoch {epoch} is kept in {self.resume}" if self.resume and epoch else ""
            raise TrainingError(
                f"loss is {loss.item()} at step {self.schedule.last_epoch + 1} (epoch {epoch + 1}); "
                f"lower lr (now {self.config.lr:g}) or encoder_lr{kept}"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.step.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.item()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "best": self.best,
            "rows": self.rows,
            "seconds": self.seconds_before + time.monotonic() - self.started,
        }

    def _save(self) -> None:
        if self.resume and self.config.mode == "finetune" and self.accelerator.is_main_process:
            with replacing(self.resume) as draft:
                torch.save(self._state(), draft)

    def _restore(self) -> int:
        if not (self.resume and self.resume.exists()):
            return 0
        state = torch.load(self.resume, map_location=self.accelerator.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.best, self.rows, self.seconds_before = state["best"], state["rows"], state["seconds"]
        return len(self.rows)


def _parameter_groups(model: ProductClassifier, config: TrainConfig) -> list[dict[str, Any]]:
    """Split parameters by role: encoders learn at `encoder_lr` or not at all, vectors are not decayed."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        encoder = "_encoder." in f"{name}."
        if parameter.requires_grad and not (encoder and config.mode == "frozen"):
            groups.setdefault((encoder, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": params, "lr": config.encoder_lr if encoder else config.lr}
        | ({} if decayed else {"weight_decay": 0.0})
        for (encoder, decayed), params in groups.items()
    ]


def _warm_cosine(warmup: float, steps: int) -> Callable[[int], float]:
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def evaluate(
    model: ProductClassifier,
    dataset: ProductDataset | EncodedDataset,
    batch_size: int = 32,
    bf16: bool = False,
) -> Evaluation:
    """Classify a whole split.

    Args:
        model: put into evaluation mode, and on a GPU if there is one, for the call and given back as it was.
        dataset: a split of pictures, or one that `encode` made.
        batch_size: images a forward pass; does not change the result.
        bf16: encode in bfloat16 where the device is faster so.
    """
    probs = []
    with _placed(model) as where, evaluating(model):
        if isinstance(dataset, EncodedDataset):
            for rows in torch.arange(len(dataset)).split(POOLED_AT_ONCE):
                part = dataset[rows.tolist()].to(where)
                with _autocast(where.type, bf16):
                    image = model.pool(part.image)
                probs.append(_probabilities(model, image, part.text))
            labels, indices = dataset.labels.numpy(), dataset.rows
        else:
            loader = _loader(dataset, batch_size)
            for batch in tqdm(loader, desc="evaluate", mininterval=2, leave=False, disable=len(dataset) < 100):
                batch = batch.to(where)
                with _autocast(where.type, bf16):
                    image = model.encode_image(batch.images) if "image" in model.modalities else None
                    text = model.encode_text(batch.texts) if "text" in model.modalities else None
                probs.append(_probabilities(model, image, text))
            labels, indices = dataset.labels, dataset.rows
    probabilistic = getattr(model, "probabilistic", True)
    return Evaluation(torch.cat(probs).cpu().numpy(), labels, list(model.classes), indices, probabilistic)


def _probabilities(model: ProductClassifier, image: Features | None, text: Features | None) -> Tensor:
    """Return (B,K) in float32 whatever the encoders computed in: in bfloat16 logits would tie."""
    exact = [part and Features(part.values.float(), part.available) for part in (image, text)]
    return model.classify(*exact).softmax(-1)


@contextmanager
def _placed(model: nn.Module, stay: bool = False) -> Iterator[torch.device]:
    """Lend a model that is on the CPU to the fastest device, unless it shall `stay`; then it is back where it was."""
    home = next(model.parameters(), torch.empty(0)).device
    where = torch.device(device()) if home.type == "cpu" and not stay else home
    try:
        model.to(where)
        yield where
    finally:
        model.to(home)


def _loader(dataset: ProductDataset, batch_size: int, shuffle: bool = False, workers: int = 0) -> DataLoader:
    # Models see pictures and words; only augmentation may ask for the outline.
    dataset = dataset.with_options(reads=("mask",) if dataset.augment else ())
    return DataLoader(
        dataset, batch_size, shuffle, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's generators for the block only; the caller's randomness goes on untouched."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def _autocast(device_type: str, bf16: bool) -> Iterator[None]:
    fast = _computes_bf16(device_type)
    with torch.autocast(device_type, torch.bfloat16, enabled=bf16 and fast):
        if bf16 and fast and device_type == "cpu":
            with _DepthwiseInFloat32():
                yield
        else:
            yield


class _DepthwiseInFloat32(TorchFunctionMode):
    """Compute wide and strided depthwise convolutions in float32: oneDNN's backward pass is slow in bfloat16.

    A training step of EfficientNet-Lite2 takes half the time so (`retailkit bench train`).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d and len(args) == 7:
            images, weight, _, stride, _, _, groups = args
            if groups > 1 and weight.shape[1] == 1 and (weight.shape[-1] > 3 or max(stride) > 1):
                with torch.autocast(images.device.type, enabled=False):
                    return func(images.float(), *args[1:])
        return func(*args, **(kwargs or {}))


def _computes_bf16(device_type: str) -> bool:
    """Say whether this kind of device computes in bfloat16 by itself, not by emulation."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = device_type == "cpu" and torch.backends.mkldnn.is_available()
    return mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# -- Checkpoints and what identifies them.


def save_checkpoint(model: ProductClassifier, path: str | Path, history: History, **facts: Any) -> Path:
    """Write weights and what is needed to build the model again as one safetensors file, in one step.

    The JSON in the file's header holds `build` (arguments of `models.rebuild`), `history` and `facts`.
    """
    header = {"build": model.build_args, "history": history.to_dict(), "facts": facts, "format": 1}
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(path) as draft:
        draft.write_bytes(safetensors.torch.save(weights, metadata={"retailkit": json.dumps(header)}))
    return Path(path)


def fit_and_save(
    model: ProductClassifier,
    path: str | Path,
    train: ProductDataset,
    val: ProductDataset | None,
    config: TrainConfig,
    resume: Path,
    **facts: Any,
) -> History:
    """Train a model (`fit`) and write its checkpoint; only then is the state of the interrupted training dropped."""
    history = fit(model, train, val, config, resume)
    save_checkpoint(model, path, history, **facts)
    resume.unlink(missing_ok=True)
    return history


def load_checkpoint(path: str | Path) -> tuple[ProductClassifier, History, dict[str, Any]]:
    """Read what `save_checkpoint` wrote; the encoders' own weight files are not needed.

    Raises:
        UserError: the file is missing, cut off, or not a retailkit checkpoint.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["retailkit"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; train one with `retailkit train`") from None
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a retailkit checkpoint ({error}); train again or give another file") from None
    model = models.rebuild(header["build"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1 if "\n" in str(error) else 0].strip()[:120]
        raise UserError(
            f"{path}: its weights are those of another model than its header describes ({reason}); train again"
        ) from None
    return model.eval(), History.from_dict(header["history"]), header["facts"]


def check_labels(model: ProductClassifier, data: ProductData) -> None:
    """Make sure that a checkpoint knows every class of a data set.

    Raises:
        UserError: names the first row whose label the model has never seen.
    """
    strange = ~data.table["label"].isin(model.classes)
    if strange.any():
        row = data.table[strange].iloc[0]
        raise UserError(
            f"{row['image']}: label {row['label']!r} is unknown to this checkpoint of {len(model.classes)} classes; "
            "train with this class or drop the row"
        )


def with_classes(data: ProductData, model: ProductClassifier) -> ProductData:
    """Return `data` with the model's class order, so that labels and logits agree."""
    check_labels(model, data)
    return replace(data, classes=list(model.classes))


@dataclass(frozen=True)
class TrainSpec:
    """A training run, written down: data, model and configuration.

    Attributes:
        dataset: name for `data.load`.
        root: its folder; None takes the default.
        data_options: options of the reader.
        model: name for `models.build`.
        model_options: its options (`backbone`, `pooling`, `weights`, ...).
        size: side of validation and test images; None takes the encoder's.
        config: how to train.
    """

    dataset: str = "synthetic"
    root: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    model: str = "image"
    model_options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    config: TrainConfig = field(default_factory=TrainConfig)

    def key(self, data: ProductData) -> str:
        """Return a hash of everything that decides the result: spec, data, our sources, library versions."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("root", "config")}
        return digest(plain, self.config, data_fingerprint(data), code_fingerprint(__name__))


def fit_or_load(
    spec: TrainSpec, data: ProductData | None = None, path: str | Path | None = None
) -> tuple[ProductClassifier, History]:
    """Train what `spec` says, or load it if the very same run has been done before.

    Args:
        spec: data, model and configuration.
        data: the data set if it is loaded already (with its OCR text, say); None loads it.
        path: checkpoint file; None keeps it in the cache folder under the run's key. An existing file is
            loaded if it was made by the same run and replaced otherwise.

    Returns:
        The model in evaluation mode and its history.
    """
    data = data or datasets.load(spec.dataset, spec.root, **spec.data_options)
    key = spec.key(data)
    path = Path(path) if path else cache_dir("checkpoints") / f"{key}.safetensors"
    if path.exists():
        try:
            model, history, facts = load_checkpoint(path)
            if facts.get("key") == key:
                return model, history
        except UserError:
            pass  # unreadable: trained again below, replaced only once the new one is whole
    with _seeded(spec.config.seed):
        model = models.build(spec.model, data.classes, **spec.model_options)
    size, splits = spec.size or model.input_size, data.splits
    val = data.split("val", size) if "val" in splits else None
    partial = cache_dir("partial") / f"{key}.pt"
    facts = {
        "key": key,
        "spec": json.loads(json.dumps(asdict(spec), default=str)),
        "size": size,
        "fit": data.fit,
    }
    history = fit_and_save(model, path, data.split("train", size), val, spec.config, partial, **facts)
    return model, history


def data_fingerprint(data: ProductData, rows: np.ndarray | None = None, text: bool = True) -> str:
    """Return a hash of a data set: labels, splits, content of pictures and masks, the text if it matters."""
    table = data.table if rows is None else data.table.iloc[rows]
    columns = ["label", "split"] + (["text"] if text else [])
    files = [file_identity(path) for column in ("image", "mask") for path in table[column] if path]
    return digest(table[columns].to_numpy().tolist(), list(data.classes), files)


def encoder_fingerprint(model: ProductClassifier) -> str:
    """Return a hash of what a model's encoders are: their weights, or all of a model that has none, and their kind."""
    kind = [type(model).__name__, list(model.modalities), type(model.pooling).__name__]
    whole = model.image_encoder is None and model.text_encoder is None
    kind += [model.build_args if whole else None]
    return digest(kind, {n: t for n, t in model.state_dict().items() if whole or "_encoder." in n})


def fingerprint(model: ProductClassifier) -> str:
    """Return a hash of a model: how it was built, its classes, and all its weights."""
    return digest(type(model).__name__, model.build_args, model.classes, model.state_dict())
