"""Images of different lengths, one after the other: [1, T, D] instead of [B, M, D] with padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .caching import cached


@dataclass(eq=False)
class Packing:
    """How many tokens each image of a batch has, and where they are in one sequence of all.

    Attributes:
        counts: [B] int64.
        longest: M, the largest count.
        total: T, their sum.
        lengths: ``counts`` as numbers, which a compiler does not have.
    """

    counts: Tensor
    longest: int
    total: int
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, counts: Tensor) -> Packing | None:
        """None where all images have the same number, and padding costs nothing. (A compiler packs those too.)

        Reads the numbers from the device, all at once.
        """
        if torch.compiler.is_compiling():
            total, longest = torch.stack([counts.sum(), counts.amax()]).tolist()
            torch._check(longest >= 2)
            torch._check(total >= longest)
            return cls(counts, longest, total)
        lengths = tuple(counts.tolist())
        return None if min(lengths) == max(lengths) else cls(counts, max(lengths), sum(lengths), lengths)

    def widened(self, count: int) -> Packing:
        """So many tokens more in every image (fewer, if negative)."""
        return Packing(
            self.counts + count,
            self.longest + count,
            self.total + count * self.counts.shape[0],
            tuple(length + count for length in self.lengths),
        )

    def pack(self, x: Tensor) -> Tensor:
        """[B, M, ...] to [1, T, ...]."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, T, ...] to [B, M, ...], zero past an image's own tokens."""
        # Added to zeros: not every torch copies rows by index on Apple GPUs, and on a CPU this is faster.
        rows = x.new_zeros(self.counts.shape[0] * self.longest, *x.shape[2:]).index_add_(0, self.index, x[0])
        return rows.unflatten(0, (self.counts.shape[0], self.longest))

    def split(self, x: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
        """The images of a packed sequence, [1, m, ...] each."""
        return x.split(self.lengths, dim)

    @cached
    def index(self) -> Tensor:
        """[T]; where each token of the sequence is among the B*M places of the padded batch."""
        ends = self.counts.cumsum(0)
        place = torch.arange(self.total, device=ends.device)
        image = torch.bucketize(place, ends, right=True)
        return place + (image * self.longest - (ends - self.counts)[image])
