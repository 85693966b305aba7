"""Several processes that train one model, as `accelerate launch` starts them; each steps on its part of every batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from retailkit.config import ALONE, UsageError, device, rank

if TYPE_CHECKING:
    from accelerate import Accelerator


@cache
def team() -> Accelerator:
    """Return what joins the processes; all of them have to call it."""
    from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs

    return Accelerator(
        cpu=device() == "cpu",
        mixed_precision="no",  # the loop decides where bfloat16 is used
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def main_first() -> AbstractContextManager:
    """Return a block that the first process of each machine enters before the others, which find what it has kept."""
    return nullcontext() if rank() is None else team().local_main_process_first()


def check_shared(batch_size: int, whole: bool) -> None:
    """Raise `UsageError` where several processes cannot share a training: `whole` says that all of a network learns."""
    if not whole:
        raise UsageError(ALONE)
    if batch_size % (count := team().num_processes):
        raise UsageError(f"batch_size={batch_size} cannot be divided among {count} processes; start another number")


class _Loss(nn.Module):
    """A training loss as a forward pass, whose gradients are averaged over the processes."""

    def __init__(self, model: nn.Module, criterion: Any) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, batch: Any) -> Tensor:
        """Return the loss of this process's part of a batch."""
        return self.model.training_loss(batch, self.criterion)


def shared(model: nn.Module, criterion: Any, loader: DataLoader) -> tuple[nn.Module, DataLoader]:
    """Return the loss as a function of a batch, and a loader that gives each process its part of every batch.

    Where parts of a batch differ in size, it is filled with its first images. Parameters, gradients and the order of
    images are the same in all processes.
    """
    return team().prepare_model(_Loss(model, criterion)), team().prepare_data_loader(loader, device_placement=False)


def averaged(loss: Tensor) -> Tensor:
    """Return the mean of the processes' losses."""
    return loss if rank() is None else team().reduce(loss.detach(), "mean")
