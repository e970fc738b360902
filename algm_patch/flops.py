"""What the blocks of a ViT cost, from the sizes of their weights and the tokens of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class BlockCost:
    """Of one block, for N tokens of width D; multiply and add counted apart, as torch's counter does.

    Attributes:
        attention: weights of its attention: 2 operations each a token.
        mlp: of all the rest.
        pairs: operations a pair of tokens: 4 D for each attention.
    """

    attention: int
    mlp: int
    pairs: int

    def __call__(self, before: float, after: float) -> float:
        """Operations where attention sees ``before`` tokens, and the MLP ``after``."""
        return 2 * (self.attention * before + self.mlp * after) + self.pairs * before**2


def block_cost(block: nn.Module) -> BlockCost:
    """Exact for plain attention; learned position functions and differential attention are left out."""
    attentions = [matrices for module in attention_modules(block) if (matrices := list(token_matrices(module)))]
    weights = sum(matrix.numel() for matrices in attentions for matrix in matrices)
    rest = sum(matrix.numel() for matrix in token_matrices(block)) - weights
    return BlockCost(weights, rest, sum(4 * matrices[0].shape[1] for matrices in attentions))


def width_of(block: nn.Module) -> int:
    """D, of the tokens that a block takes."""
    return next(token_matrices(block)).shape[1]


def attention_modules(block: nn.Module) -> Iterator[nn.Module]:
    for name, module in block.named_children():
        if "att" in name.lower():
            yield from module if isinstance(module, nn.ModuleList) else [module]


def token_matrices(module: nn.Module) -> Iterator[Tensor]:
    """[out, in] weights that every token is multiplied with."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            yield part.weight
        elif isinstance(weight := getattr(part, "in_proj_weight", None), Tensor):  # of queries, keys and values
            yield weight


def gflops(blocks: Sequence[BlockCost], tokens: int, left: Sequence[Sequence[int]], merge_first: bool) -> float:
    """Of a forward pass of one image on average.

    Args:
        tokens: that the first block is given.
        left: of each block, how many tokens of each image it leaves.
        merge_first: whether a block merges before its MLP.
    """
    images = len(left[0])
    before, total = [tokens] * images, 0.0
    for block, after in zip(blocks, left, strict=True):
        total += sum(block(n, m if merge_first else n) for n, m in zip(before, after, strict=True))
        before = list(after)
    return total / images / 1e9
