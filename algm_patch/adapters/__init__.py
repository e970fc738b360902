"""What ALGM knows of other libraries: where their blocks split and which methods run them.

Everything is registered under the function it stands for, so that a subclass with a method of its own is not
mistaken for its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..flops import BlockCost, block_cost
from ..passes import LayerTokens


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


# The first releases whose blocks are known.
FLOORS = {"timm": "1.0.17", "transformers": "4.49"}
ADAPTERS: dict[str, type[Adapter]] = {}
REFUSALS: dict[str, str] = {}
READERS: dict[str, Callable[..., Iterable[int]]] = {}
HEADS: dict[str, str] = {}


def register(forward: str) -> Callable[[type[Adapter]], type[Adapter]]:
    """Class decorator: an :class:`Adapter` for the blocks whose forward is the function of this path.

    Args:
        forward: module and qualified name of the forward that the adapter's halves stand for, such as
            ``"mypackage.models.Block.forward"``. A subclass with a forward of its own is another function and needs an
            adapter of its own. The last registration holds.
    """

    def add(adapter: type[Adapter]) -> type[Adapter]:
        ADAPTERS[forward] = adapter
        return adapter

    return add


def refuse(forward: str, reason: str) -> None:
    """Blocks whose forward is the function of this path cannot be patched."""
    REFUSALS[forward] = reason


def reads(*methods: str) -> Callable[[Callable[..., Iterable[int]]], Callable[..., Iterable[int]]]:
    """Decorator: given a call of the method of one of these paths, the blocks (from 0) whose output it reads.

    The method must pass every other block's output on to the next block and nowhere else.
    """

    def add(blocks_read: Callable[..., Iterable[int]]) -> Callable[..., Iterable[int]]:
        READERS.update(dict.fromkeys(methods, blocks_read))
        return blocks_read

    return add


def head(decoder: str, name: str) -> None:
    """The decoder whose forward is the function of this path can run on merged tokens.

    Args:
        decoder: takes the tokens first, and minds neither their number nor their order up to the output of
        name: a module in it, which leaves [B, M, ...]: one result a token.
    """
    HEADS[decoder] = name


def path_of(function: Any) -> str:
    """The name that functions are registered under: module and qualified name."""
    return f"{getattr(function, '__module__', None)}.{getattr(function, '__qualname__', None)}"


def adapter_of(block: nn.Module) -> type[Adapter] | None:
    return ADAPTERS.get(path_of(unpatched(type(block)).forward))


def refusal_of(block: nn.Module) -> str | None:
    adapter = adapter_of(block)
    if adapter is not None:
        return adapter.refusal(block)
    return REFUSALS.get(path_of(unpatched(type(block)).forward))


def readers_of(cls: type[nn.Module]) -> dict[str, Callable[..., Iterable[int]]]:
    """By name, the methods of a class that run the blocks and are known to read only some."""
    found = {}
    for path, blocks_read in READERS.items():
        name = path.rpartition(".")[2]
        if path_of(getattr(unpatched(cls), name, None)) == path:
            found[name] = blocks_read
    return found


def head_of(decoder: nn.Module) -> nn.Module | None:
    """The module in a decoder whose output can be unmerged; None if it is not known."""
    name = HEADS.get(path_of(unpatched(type(decoder)).forward))
    return None if name is None else decoder.get_submodule(name)


def unpatched(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before it was patched."""
    return getattr(cls, "_algm_original", cls)


def is_wrapped(module: nn.Module) -> bool:
    """Return whether a forward that was set on the instance hides that of its class.

    transformers sets one around its layers and attention while it collects hidden states and attention maps, and
    afterwards leaves one there that is only the class's own again.
    """
    forward = module.__dict__.get("forward")
    if forward is None:
        return False
    own = getattr(forward, "__self__", None) is module and getattr(forward, "__func__", None) is type(module).forward
    return not own


from . import eva01, hub, huggingface, huggingface_beit, mmseg, segmenter, timm  # noqa: E402, F401
