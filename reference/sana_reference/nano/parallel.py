"""Train in several processes of one thread each.

On few cores this beats one process of several threads: nothing waits at a barrier after every operation, so other work
on the machine costs its share and no more.
"""

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn

__all__ = ["average_gradients", "in_workers", "rank", "workers"]


def workers() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 keeps the diary."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def average_gradients(models: Iterable[nn.Module]) -> None:
    """Give every process the mean of all gradients."""
    if workers() == 1:
        return
    gradients = [p.grad for model in models for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    parts = torch.split(flat / workers(), [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def in_workers(train: Callable[[], object], count: int) -> None:
    """Run `train` in `count` processes that can average their gradients."""
    if count == 1:
        train()
        return
    with TemporaryDirectory() as folder:
        spawn(_work, (train, count, Path(folder) / "meeting"), nprocs=count)  # type: ignore[no-untyped-call]


def _work(index: int, train: Callable[[], object], count: int, meeting: Path) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=meeting.as_uri(), rank=index, world_size=count, timeout=timedelta(hours=1)
    )
    train()
    distributed.barrier()  # who leaves before others have arrived breaks their meeting
    distributed.destroy_process_group()
