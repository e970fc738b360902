"""Define the interface of an adapter, which describes one block class as two halves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .cost import BlockCost, block_cost


class Adapter:
    """Describe one block class as two halves, between which tokens are merged.

    ``mlp_half(block, attention_half(block, x, tokens, ...))`` must be what the block's own forward computes.
    Subclass it, give it the two halves, and register the subclass with `register`: then blocks of that class can be
    patched. Every other method has a default that suits most blocks.

    Attributes:
        projection: path of the patch projection, whose output tells the grid, from a module above the blocks; or
            several such paths, for models that differ in it. Default: it is found by what it is, a convolution with a
            stride or a linear layer that takes patches.
    """

    projection: str | tuple[str, ...] = ()

    # -- the two halves

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        """Run the block to the end of its attention residual.

        Args:
            x: [B, L, D] tokens: the prefix, then the patches.
            tokens: what attention must know of them. Arguments that depend on the order of the tokens are given for
                the whole grid, and must go through it, as must the attention mask.
            args, kwargs: of the block's forward after ``x``.

        Returns:
            [B, L, D].
        """
        raise NotImplementedError

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        """Run the rest of the block: [B, L, D] to the tokens [B, L, D] of its output."""
        raise NotImplementedError

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        """Return the block's output, such as a tuple, made of its tokens [B, L, D]."""
        return x

    # -- the grid of patches

    @staticmethod
    def is_projection(module: Any) -> bool:
        """Return whether the module at the path ``projection`` is one: a text tower may have its embedding there."""
        return True

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return (H, W) of the patches, from the output and the arguments of the projection's forward.

        Raises:
            ValueError: if the output is not [B, D, H, W].
        """
        if not isinstance(output, Tensor) or output.dim() != 4:
            found = list(output.shape) if isinstance(output, Tensor) else type(output)
            raise ValueError(
                f"the patch projection {type(projection).__name__} left {found} where ALGM reads a grid [B, D, H, W]"
            )
        return output.shape[2], output.shape[3]

    # -- what a block can do and what not

    @staticmethod
    def refusal(block: Any) -> str | None:
        """Return why this block cannot be patched, though its forward is known: a part of it is not. None if it can."""
        return None

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Return whether the block's attention adds ``tokens.attention_mask(...)`` to its logits."""
        return True

    @staticmethod
    def mask_remedy(block: Any) -> str:
        """Return what would make ``takes_mask`` true where it is false.

        It ends an error message, so it begins with ``, or``; empty if there is no remedy.
        """
        return ""

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        """Return whether the attention half can take the images of a batch packed into one sequence [1, T, D].

        It can if tokens meet in ``scaled_dot_product_attention``, without a mask, and nowhere else. If it cannot, it
        is given one image after the other.

        Args:
            args, kwargs: of the block's forward after ``x``.
        """
        return False

    @staticmethod
    def features(block: Any, compare: str) -> tuple[str, int | None] | None:
        """Return where the block's attention leaves what ``compare`` ("query", "key" or "value") names.

        Returns:
            The path, from the block, of the module that leaves it, and which third of its output [B, L, 3 * D] it is;
            None instead of a third: all of its output [B, L, D]. None if no module leaves it: the block then merges by
            its tokens alone.
        """
        return None

    # -- cost

    @classmethod
    def cost(cls, block: Any) -> BlockCost:
        """Return what the block costs, from the sizes of its linear layers.

        Override it where tokens are multiplied with other weights than those of such layers, or where attention
        computes more than one product of queries and keys and one of weights and values.
        """
        return block_cost(block, cls.mlp_half)

    @staticmethod
    def position_cost(trunk: Any, grid: tuple[int, int]) -> int:
        """Return the operations of products that run on positions and not on tokens, for a grid of patches."""
        return 0
