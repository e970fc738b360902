"""An adapter: one block class as two halves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.layer_tokens import LayerTokens
from .cost import BlockCost, block_cost


class Adapter:
    """One block class as two halves. ``mlp_half(block, attention_half(block, x, ...))`` is the block's forward.

    Subclass it, register the subclass with :func:`register`, and blocks of that class can be patched.

    Attributes:
        projection: path, from a module above the blocks, to the patch projection, which tells the grid; or several
            such paths, for models that differ in it.
    """

    projection: str | tuple[str, ...]

    @staticmethod
    def attention_half(block: Any, x: Tensor, tokens: LayerTokens, *args: Any, **kwargs: Any) -> Tensor:
        """To the end of the attention residual: [B, L, D] to [B, L, D].

        Takes the arguments of the block's forward. Those that depend on the order of the tokens come for the whole
        grid and must go through ``tokens``, as must the attention mask.
        """
        raise NotImplementedError

    @staticmethod
    def mlp_half(block: Any, x: Tensor) -> Tensor:
        """From there to the block's tokens."""
        raise NotImplementedError

    @staticmethod
    def takes_mask(block: Any) -> bool:
        """Whether the block's attention takes ``tokens.attention_mask(...)``."""
        return True

    @staticmethod
    def packs(block: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether, with these arguments of the block's forward, the attention half can take packed images [1, T, D].

        It can if tokens meet in ``scaled_dot_product_attention``, without a mask, and nowhere else. Where it cannot,
        it is given one image after the other.
        """
        return False

    @staticmethod
    def mask_remedy(block: Any) -> str:
        """What would make ``takes_mask`` true where it is false: the end of an error message, from ``, or ...`` on."""
        return ""

    @staticmethod
    def features(block: Any, metric: str) -> tuple[str, int | None] | None:
        """Where the block's attention leaves what the metric ("query", "key", "value") compares.

        Returns:
            The path, from the block, of the module whose output [B, L, D] or [B, L, 3 * D] it is, and which third of
            that; None: all of it. None if no module leaves it: the block then merges by its tokens alone.
        """
        return None

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

    @staticmethod
    def refusal(block: Any) -> str | None:
        """Why this block cannot be patched, though its forward is known: parts of it that are not. None if it can."""
        return None

    @staticmethod
    def is_projection(module: Any) -> bool:
        """Whether the module at the path ``projection`` is one: a text tower may have its embedding there."""
        return True

    @staticmethod
    def pack(block: Any, x: Tensor) -> Any:
        """The block's output, made of its tokens."""
        return x

    @staticmethod
    def grid(projection: Any, output: Any, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """(H, W) of the patches, from the output and the arguments of the projection's forward."""
        if not isinstance(output, Tensor) or output.dim() != 4:
            found = list(output.shape) if isinstance(output, Tensor) else type(output)
            raise ValueError(
                f"the patch projection {type(projection).__name__} left {found} where ALGM reads a grid [B, D, H, W]"
            )
        return output.shape[2], output.shape[3]
