"""How to train, the loop that does it, and the evaluation."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from tqdm.auto import tqdm

from retailkit.cache import replacing
from retailkit.config import SEEDS, UsageError, UserError, pick, rank
from retailkit.data.augment import AUGMENTATIONS
from retailkit.data.table import Batch, ProductDataset
from retailkit.inference import compiled
from retailkit.losses import criterion
from retailkit.metrics import Evaluation
from retailkit.models.classifier import ProductClassifier, evaluating
from retailkit.models.weights import reason
from retailkit.training.encoded import EncodedDataset, bar, encode, encode_batch, joined, load_batches, placed, seeded
from retailkit.training.processes import averaged, check_shared, shared, team

COMPILED_FROM = 64  # images to evaluate: compiling takes as long as PyTorch takes for about so many
POOLED_AT_ONCE = 128  # images: a map passes through LCA as many windows
MODES = ("frozen", "finetune")
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, weight_decay=0.02),
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4),  # as the papers on LCA and NTS-Net
}
RATES = {"adamw": {}, "sgd": {"lr": 0.02, "encoder_lr": 0.005}}  # in place of the defaults of `TrainConfig`


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Rates are per step: a linear warm-up over a tenth of all steps, then a cosine down to zero."""

    mode: str = "frozen"  # encoders stay as they are; or `finetune`
    epochs: int = 60  # passes over the training split
    batch_size: int = 32  # images per step
    optimizer: str = "adamw"  # or `sgd` with momentum, which needs higher rates (`RATES`)
    lr: float = 2e-3  # peak learning rate of the head
    encoder_lr: float = 5e-4  # peak learning rate of the encoders in `finetune` mode
    criterion: str = "label_smoothing"  # name in `losses.CRITERIA`
    criterion_options: dict[str, Any] = field(default_factory=dict)
    augment: str = "none"  # name in `AUGMENTATIONS`
    train_size: int | None = None  # side in pixels, often less than in a test (Touvron et al. 2019); None: the split's
    views: int = 1  # augmented views per image whose features are kept, in `frozen` mode
    ema: float = 0.0  # decay of the exponential moving average of weights; 0 keeps the last weights
    seed: int = 0  # of weights, order and augmentation

    def __post_init__(self) -> None:
        pick(MODES, self.mode, "training mode")
        pick(AUGMENTATIONS, self.augment, "augmentation")
        pick(OPTIMIZERS, self.optimizer, "optimizer")
        if min(self.epochs, self.batch_size, self.views) < 1:
            raise UsageError("epochs, batch_size and views must be at least 1")
        if not 0 <= self.seed < 2 * SEEDS:
            raise UsageError(f"seed={self.seed} is out of range; use 0 to {SEEDS - 1}")


@dataclass
class History:
    """What happened while training.

    `epochs` has one row for each: `epoch`, `loss` (mean of the steps), `lr`, `seconds`, and `val_top1`, `val_loss` if
    there is a validation split.
    """

    epochs: pd.DataFrame
    best_epoch: int  # whose weights were kept
    seconds: float  # wall time of all epochs, encoding and what happened before an interrupt included

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**vars(self), "epochs": json.loads(self.epochs.to_json(orient="records"))}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> History:
        """Read what `to_dict` wrote."""
        return cls(pd.DataFrame(plain["epochs"]), plain["best_epoch"], plain["seconds"])


class TrainingError(UserError):
    """Training cannot go on; the message says at which step and what was kept."""


def fit(
    model: ProductClassifier,
    train: ProductDataset | EncodedDataset,
    val: ProductDataset | EncodedDataset | None = None,
    config: TrainConfig | None = None,
    resume: str | Path | None = None,
) -> History:
    """Train `model` in place and leave it in evaluation mode with the best weights.

    Args:
        model: what to train; `model.prepare(train)` is called first.
        train: training split; its `augment` is replaced by the configuration's. From an encoded split only the head
            (and a pooling with weights) learns, whatever the mode.
        val: validation split; with it the weights of the epoch with the best top-1 (then the lowest loss) are kept.
        config: how to train.
        resume: file with the state after each epoch of fine-tuning, from which an interrupted run goes on. Whoever
            keeps the model removes it (`fit_once`).

    Raises:
        TrainingError: the loss is not finite; the last finished epoch stays in `resume`.
    """
    config, started, images = config or TrainConfig(), time.monotonic(), isinstance(train, ProductDataset)
    if images:
        model.prepare(train)
    remembers = hasattr(model, "head") and model.head.remembers
    if remembers and images and config.mode != "frozen":
        raise UsageError("a gallery learns nothing by gradient; train it with mode='frozen' (--frozen)")
    if not (remembers or any(p.requires_grad for p in model.parameters())):
        return History(pd.DataFrame(columns=["epoch", "loss", "lr", "seconds"]), 0, time.monotonic() - started)
    with placed(model) as where, seeded(config.seed):
        if images:
            fixed = getattr(getattr(model, "image_encoder", None), "fixed", False)
            size = train.size if fixed else config.train_size or train.size
            train = train.with_options(size=size, augment=AUGMENTATIONS[config.augment](size))
            if config.mode == "frozen":
                model.freeze()
                train = encode(model, train, config.views, config.seed)
                val = None if val is None else encode(model, val)
        if isinstance(train, EncodedDataset):
            model.fit_scalers(train.image, train.text)
            learner = model.with_parts(image_encoder=None, text_encoder=None)
            sampler = BatchSampler(RandomSampler(train), config.batch_size, drop_last=False)
            loader = DataLoader(train, batch_size=None, sampler=sampler)  # each index is a whole batch
        else:
            learner, loader = model, load_batches(train, config.batch_size, shuffle=True)
        if remembers:
            model.head.fill(model.by_modality(train.image, train.text), train.labels)
            rows, best, before = [], 0, 0.0
        else:
            loop = _Loop(learner, loader, val, config, where, resume)
            loop.run()
            rows, best, before = loop.rows, loop.best["epoch"], loop.seconds_before
        model.eval()
        if val is not None and model.head.tunes:
            with evaluating(model):
                features = EncodedDataset.from_tensors(joined(_encoded(model, val, where)))
                model.tune(features.image, features.text, features.labels)
    return History(pd.DataFrame(rows), best, time.monotonic() - started + before)


class _Loop:
    """The state of one training run: what an epoch changes and an interrupted run goes on from."""

    def __init__(self, model, loader, val, config, where, resume) -> None:
        self.model = model.to(where, memory_format=torch.channels_last)
        self.loader, self.val, self.config, self.where = loader, val, config, where
        slow = model.image_encoder or model.text_encoder or hasattr(model.pooling, "learned")  # not so a head alone
        self.resume = Path(resume) if resume and slow else None
        frozen = model.image_encoder is not None and model.image_encoder.frozen  # below a pooling that learns
        learner = compiled(self.model, frozen_only=True) if frozen and rank() is None else self.model
        self.criterion = criterion(config.criterion, **config.criterion_options)
        self.loss_of = partial(learner.training_loss, criterion=self.criterion)
        if rank() is not None:
            check_shared(config.batch_size, not isinstance(loader.dataset, EncodedDataset))
            self.loss_of, self.loader = shared(self.model, self.criterion, loader)
        self.optimizer = OPTIMIZERS[config.optimizer](_parameter_groups(model, config))
        rate = warm_cosine(len(self.loader) * config.epochs)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}
        self.average = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
            self.parts["average"] = self.average
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, Any] = {"epoch": 0, "score": (-math.inf, 0.0), "weights": None}
        self.started, self.seconds_before = time.monotonic(), 0.0  # before: of the parts that were interrupted

    def run(self) -> None:
        """Train the epochs that are left, and put the best weights into the model."""
        if self.resume and self.resume.exists():
            self._restore()
        first, last = len(self.rows), self.config.epochs
        for epoch in tqdm(range(first, last), "train", initial=first, total=last, mininterval=2):
            self._epoch(epoch)
            if self.resume and not rank():
                with replacing(self.resume) as draft:
                    torch.save(self._state(), draft)
        self.model.load_state_dict(self.best["weights"])
        self.model.eval().to(memory_format=torch.contiguous_format)  # as a loaded one: the layout decides the rounding

    def _epoch(self, epoch: int) -> None:
        started = time.monotonic()
        self.model.train()
        if rank() is not None:
            self.loader.set_epoch(epoch)  # decides the order of images in all processes
        with seeded(self.config.seed * 10_007 + epoch + 1 + ((rank() or 0) << 40)):
            losses = [self._step(batch.to(self.where)) for batch in bar(self.loader, f"epoch {epoch + 1}")]
        row = {"epoch": epoch + 1, "loss": float(np.mean(losses)), "lr": self.schedule.get_last_lr()[0]}
        judged = self.average.module if self.average else self.model
        score = (float(epoch), 0.0)  # without a validation split the last epoch is the best one
        if self.val is not None:
            result = evaluate(judged, self.val) if rank() is None else self._evaluated_together(judged)
            row["val_top1"], row["val_loss"] = result.top1, result.loss
            score = (result.top1, -result.loss)
        self.rows.append(row | {"seconds": time.monotonic() - started})
        if score > self.best["score"]:
            weights = {k: v.detach().clone() for k, v in judged.state_dict().items()}
            self.best = {"epoch": epoch + 1, "score": score, "weights": weights}

    def _evaluated_together(self, model: nn.Module) -> Evaluation:
        """Evaluate a part of the validation split in each process, all with the running statistics of the first."""
        from accelerate.utils import broadcast, gather_object

        broadcast(list(model.buffers()))
        own = self.val.with_options(rows=self.val.rows[rank() :: team().num_processes])
        return Evaluation.joined(gather_object([evaluate(model, own)] if len(own) else []))

    def _step(self, batch: Batch | EncodedDataset) -> float:
        if isinstance(batch, EncodedDataset):
            loss = self.model.loss(self.model.pool(batch.image), batch.text, batch.labels, self.criterion)
        else:
            with torch.autocast(self.where.type, torch.bfloat16, enabled=computes_bf16(self.where)):
                loss = self.loss_of(batch)
        if not torch.isfinite(mean := averaged(loss)):
            epoch = len(self.rows)
            kept = f"; epoch {epoch} is kept in {self.resume}" if self.resume and epoch else ""
            raise TrainingError(
                f"loss is {mean.item()} at step {self.schedule.last_epoch + 1} (epoch {epoch + 1}); "
                f"lower lr (now {self.config.lr:g}) or encoder_lr{kept}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.model)
        return mean.item()

    def _state(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.monotonic() - self.started
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return states | {"best": self.best, "rows": self.rows, "seconds": seconds}

    def _restore(self) -> None:
        """Go on from what is kept; where that is damaged, begin anew."""
        fresh = copy.deepcopy({name: part.state_dict() for name, part in self.parts.items()})
        try:
            state = torch.load(self.resume, map_location=self.where, weights_only=True)
            self.model.load_state_dict(state["best"]["weights"])
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.rows, self.seconds_before = [dict(row) for row in state["rows"]], float(state["seconds"])
            self.best = state["best"] | {"score": tuple(state["best"]["score"])}
        except Exception as error:  # a damaged file fails in a dozen ways, and each means the same here
            for name, part in self.parts.items():
                part.load_state_dict(fresh[name])
            self.rows, self.seconds_before = [], 0.0
            print(f"{self.resume}: the interrupted training cannot be read ({reason(error)}); it begins anew")


def _parameter_groups(model: ProductClassifier, config: TrainConfig) -> list[dict[str, Any]]:
    """Split parameters by role: encoders and their last blocks learn at `encoder_lr`, vectors are not decayed."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            encoder = "_encoder." in name or ".learned." in name
            groups.setdefault((encoder, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": params, "lr": config.encoder_lr if encoder else config.lr}
        | ({} if decayed else {"weight_decay": 0.0})
        for (encoder, decayed), params in groups.items()
    ]


def warm_cosine(steps: int) -> Callable[[int], float]:
    """Return the factor of the peak learning rate by step: a linear rise over a tenth, then a cosine down to zero."""
    rise = max(1, round(0.1 * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def computes_bf16(where: torch.device) -> bool:
    """Return whether fine-tuning may compute in bfloat16: on a GPU with units for it.

    Nothing that is evaluated or kept in a cache does, so that no accuracy depends on the processor.
    """
    return where.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def evaluate(model: ProductClassifier, dataset: ProductDataset | EncodedDataset) -> Evaluation:
    """Classify a whole split, of images or encoded, in float32; the model's mode and device stay as they were."""
    with placed(model) as where, evaluating(model):
        parts = _encoded(model, dataset, where)
        probs = torch.cat([model.classify(part.image, part.text).softmax(-1) for part in parts])
    labels = dataset.labels if isinstance(dataset, ProductDataset) else dataset.labels.numpy()
    probabilistic = getattr(model, "probabilistic", True)
    return Evaluation(probs.cpu().numpy(), labels, list(model.classes), dataset.rows, probabilistic)


def _encoded(
    model: ProductClassifier, split: ProductDataset | EncodedDataset, where: torch.device
) -> Iterator[EncodedDataset]:
    """Yield the features that `classify` takes, batch by batch."""
    if isinstance(split, EncodedDataset):
        for positions in torch.arange(len(split)).split(POOLED_AT_ONCE):
            part = split[positions].to(where)
            yield replace(part, image=model.pool(part.image))
    else:
        fast = compiled(model) if len(split) > COMPILED_FROM else model
        for batch in bar(load_batches(split, 32), "evaluate"):
            yield encode_batch(fast, batch.to(where), fast.encode_image)
