"""Share the images of a data set among processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from .dataset import Dataset


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def process_count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_share(dataset: Dataset) -> Dataset:
    """Return the images of this process. Every image belongs to exactly one process."""
    return dataset[rank() :: process_count()]


def own_rows(dataset: Dataset) -> range:
    """Return the places of this process's images among all."""
    return range(rank(), len(dataset), process_count())


def summed(counts: Tensor) -> Tensor:
    """Add up integers over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    return counts
