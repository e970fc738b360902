"""Make queries, keys and values of merged tokens, and tell how exact an attention of them is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from algm_patch.core.packing import Packing

HEAD = 64
SCALE: float = HEAD**-0.5

Triple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """Hold the shape of attention in a network; ``length`` is that of each image, or the mean."""

    name: str
    batch: int
    heads: int
    length: int


def exact_attention(query: Tensor, key: Tensor, value: Tensor, sizes: Tensor | None) -> Tensor:
    """Return attention [heads, L, 64] of one image, in float64."""
    logits = query.double() @ key.double().mT * SCALE
    if sizes is not None:
        logits = logits + sizes.double().log()
    return logits.softmax(-1) @ value.double()


@dataclass(frozen=True)
class Batch:
    """Hold queries, keys and values [B, heads, L, 64] as a projection of all three leaves them, and sizes [B, L]."""

    qkv: Triple
    sizes: Tensor

    @classmethod
    def random(cls, case: Case, device: str, dtype: torch.dtype) -> Batch:
        """Return random ones."""
        qkv = torch.randn(case.batch, case.length, 3, case.heads, HEAD, device=device, dtype=dtype)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return cls((query, key, value), torch.randint(1, 9, (case.batch, case.length), device=device))

    def error(self, output: Tensor, biased: bool) -> float:
        """Return the largest difference of an output's first image to float64."""
        query, key, value = (x[0] for x in self.qkv)
        expected = exact_attention(query, key, value, self.sizes[0] if biased else None)
        return (output[0].double() - expected).abs().max().item()


@dataclass(frozen=True)
class Packed:
    """Hold queries, keys and values [T, heads, 64] of all images; sizes [B, M], zero past an image's own tokens."""

    qkv: Triple
    sizes: Tensor
    packing: Packing

    @classmethod
    def random(cls, case: Case, device: str, dtype: torch.dtype) -> Packed:
        """Return random ones, of lengths from three to five quarters of the case's, whose mean is the case's."""
        spread = torch.linspace(0.75, 1.25, case.batch) if case.batch > 1 else torch.ones(1)
        counts = (spread * case.length).round().long()
        lengths = tuple(counts.tolist())
        packing = Packing(counts.to(device), max(lengths), sum(lengths), lengths)
        query, key, value = torch.randn(packing.total, 3, case.heads, HEAD, device=device, dtype=dtype).unbind(1)
        sizes = torch.randint(1, 9, (case.batch, packing.longest), device=device)
        own = torch.arange(packing.longest, device=device) < packing.counts[:, None]
        return cls((query, key, value), sizes * own, packing)

    def error(self, output: Tensor, biased: bool) -> float:
        """Return the largest difference of the first image's output [T, heads, 64] to float64."""
        length = self.packing.lengths[0]
        query, key, value = (x[:length].transpose(0, 1) for x in self.qkv)
        expected = exact_attention(query, key, value, self.sizes[0, :length] if biased else None)
        return (output[:length].double() - expected.transpose(0, 1)).abs().max().item()
