"""Pack images of different lengths, one after the other: [1, T, D] instead of [B, M, D] with padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .alike import Groups, of_rows
from .caching import cached
from .compiling import read_numbers


@dataclass(eq=False)
class Packing:
    """Hold how many tokens each image of a batch has, and where they are in one sequence of all.

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
    def read(cls, counts: Tensor) -> Packing:
        """Return the packing of images with so many tokens [B], read from the device all at once."""
        lengths = tuple(counts.tolist())
        return cls(counts, max(lengths), sum(lengths), lengths)

    @classmethod
    def traced(cls, counts: Tensor) -> Packing:
        """Return the same packing for a compiler, which knows that there are numbers, and not which."""
        total, longest = read_numbers(torch.stack([counts.sum(), counts.amax()]))
        torch._check(longest >= 2)
        torch._check(total >= longest)
        return cls(counts, longest, total)

    @property
    def even(self) -> bool:
        """True where all images have the same number of tokens, as far as that is known: a batch needs no padding."""
        return bool(self.lengths) and min(self.lengths) == self.longest

    def widened(self, count: int) -> Packing:
        """Return the packing with so many tokens more in every image (fewer, if negative)."""
        return Packing(
            self.counts + count,
            self.longest + count,
            self.total + count * self.counts.shape[0],
            tuple(length + count for length in self.lengths),
        )

    def pack(self, x: Tensor) -> Tensor:
        """Return a batch [B, M, ...] as one sequence [1, T, ...]."""
        return x.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """Return a sequence [1, T, ...] as a batch [B, M, ...], zero past an image's own tokens."""
        if x.is_cuda:  # five times as fast there as adding rows
            padding = self.padding.reshape(*self.padding.shape, *[1] * (x.dim() - 2))
            return self.spread(x).masked_fill_(padding, 0)
        # Added to zeros: not every torch copies rows by index on Apple GPUs, and on a CPU this is faster.
        rows = x.new_zeros(self.counts.shape[0] * self.longest, *x.shape[2:]).index_add_(0, self.index, x[0])
        return rows.unflatten(0, (self.counts.shape[0], self.longest))

    def spread(self, x: Tensor) -> Tensor:
        """Return a sequence [1, T, ...] as a batch [B, M, ...]; past an image's own tokens, copies of its last."""
        return of_rows(x[0], self.rows)

    def split(self, x: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
        """Return the images of a packed sequence, [1, m, ...] each."""
        return x.split(self.numbers, dim)

    def images(self, x: Tensor) -> list[Tensor]:
        """Return the images of a batch [B, M, ...] without padding, [1, m, ...] each; of [B, M - P, ...], m - P."""
        left_out = self.longest - x.shape[1]
        return [x[i : i + 1, : length - left_out] for i, length in enumerate(self.numbers)]

    @cached
    def numbers(self) -> list[int]:
        """``counts`` as numbers, read from the device where a graph had made them."""
        return list(self.lengths) or self.counts.tolist()

    @cached
    def groups(self) -> Groups:
        """The images in groups of like length."""
        return Groups(self.counts, self.lengths, self.longest, self.total)

    @cached
    def padding(self) -> Tensor:
        """[B, M]: True past an image's own tokens."""
        return torch.arange(self.longest, device=self.counts.device) >= self.counts[:, None]

    @cached
    def rows(self) -> Tensor:
        """[B, M]: the place in the sequence of each token of the padded batch; past an image's own, of its last."""
        start = self.counts.cumsum(0) - self.counts
        place = torch.arange(self.longest, device=start.device)
        return start[:, None] + place.minimum(self.counts[:, None] - 1)

    @cached
    def index(self) -> Tensor:
        """[T]: the place of each token of the sequence among the B*M places of the padded batch."""
        ends = self.counts.cumsum(0)
        place = torch.arange(self.total, device=ends.device)
        image = torch.bucketize(place, ends, right=True)
        return place + (image * self.longest - (ends - self.counts)[image])
