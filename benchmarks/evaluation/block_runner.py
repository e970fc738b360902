"""Run the blocks of a model on fewer tokens, for the methods that ALGM is compared with, and count what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from timm.layers import Attention
from torch import Tensor, nn

from algm_patch import Algm
from algm_patch.adapters import LayerTokens
from algm_patch.patching.find_vit import Vit, find_vit
from algm_patch.report.cost import vit_cost

from ..common.gflops import METER


@contextmanager
def running(runner: BlockRunner) -> Iterator[None]:
    """Let the runner run the blocks of its model until the end of the context."""
    blocks = runner.vit.blocks
    hooks = runner.hooks()
    setattr(runner.trunk, METER, runner)
    for layer, block in enumerate(blocks, 1):
        block.forward = partial(runner.run_block, layer)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        for hook in hooks:
            hook.remove()
        delattr(runner.trunk, METER)


class BlockRunner:
    """Run the blocks of one model, and hold what is known of the present forward pass.

    A method is a subclass: it makes the tokens fewer before a block or between its halves, and tells attention of
    them. The last block gives back the full grid; whatever else reads between the blocks finds merged tokens.

    Attributes:
        grid: (H, W) of the present forward pass.
        lengths: by layer, the tokens that attention saw, and those that the MLP saw.
        matching: the operations that found what is merged, for an image.
    """

    def __init__(self, model: nn.Module) -> None:
        self.trunk, self.vit = find_vit(model)
        check_attention(self.trunk, self.vit, type(self).__name__)
        self.num_prefix_tokens: int = getattr(self.trunk, "num_prefix_tokens", 0)
        self.depth = len(self.vit.blocks)
        self.grid = (0, 0)
        self.lengths: dict[int, tuple[int, int]] = {}
        self.matching = 0

    # -- what a method says

    def before(self, layer: int, x: Tensor) -> Tensor:
        """Return the tokens [B, L, D] that a layer (counted from 1) is to run on."""
        return x

    def between(self, layer: int, x: Tensor) -> Tensor:
        """Return the tokens [B, L, D] that go on from a layer's attention to its MLP."""
        return x

    def tokens(self, x: Tensor) -> LayerTokens:
        """Return what attention must know of the tokens ``x`` [B, L, D]."""
        return LayerTokens(None, None, self.num_prefix_tokens)

    def restored(self, x: Tensor) -> Tensor:
        """Return the full grid [B, P+N, D] of the tokens that the last layer left."""
        return x

    # -- the forward pass

    def hooks(self) -> list[Any]:
        """Register the hooks that tell of a forward pass, and return their handles."""
        return [self.vit.projection.register_forward_hook(self.see_grid)]

    def see_grid(self, _: nn.Module, __: object, patches: Tensor) -> None:
        """Note the grid of patches [B, D, H, W] and begin a forward pass."""
        self.grid = (patches.shape[2], patches.shape[3])
        self.lengths, self.matching = {}, 0

    def run_block(self, layer: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run a block (counted from 1) on tokens [B, L, D]."""
        block, adapter = self.vit.blocks[layer - 1], self.vit.adapters[layer - 1]
        x = self.before(layer, x)
        seen = x.shape[1]
        x = adapter.attention_half(block, x, self.tokens(x), *args, **kwargs)
        x = self.between(layer, x)
        self.lengths[layer] = (seen, x.shape[1])
        x = adapter.mlp_half(block, x)
        return self.restored(x) if layer == self.depth else x

    @property
    def gflops(self) -> float:
        """Return the GFLOPs of the ViT for an image of the last forward pass, what found the merges included."""
        cost = vit_cost(self.trunk, self.vit, self.grid)
        blocks = sum(block(*self.lengths[layer]) for layer, block in enumerate(cost.blocks, 1))
        return (cost.fixed + blocks + self.matching) / 1e9


def check_attention(trunk: nn.Module, vit: Vit, method: str) -> None:
    """Raise ValueError if a block has other attention than timm's plain one, or the trunk is patched with ALGM."""
    for number, block in enumerate(vit.blocks, 1):
        attention = getattr(block, "attn", None)
        if type(attention) is not Attention:
            raise ValueError(
                f"{method} is measured on blocks with timm.layers.Attention, but block {number} of "
                f"{type(trunk).__name__} ({type(block).__name__}) has a {type(attention).__name__}"
            )
    if isinstance(vars(trunk).get("algm"), Algm):
        raise ValueError(f"{type(trunk).__name__} is patched with ALGM. Call remove_algm first")


def check_layer(what: str, layer: int, depth: int) -> int:
    """Return a layer counted from 1, or raise ValueError if no layer stands behind it; ``what`` begins the error."""
    if not 1 <= layer < depth:
        raise ValueError(f"{what} behind one of the layers 1 to {depth - 1}; got layer {layer}")
    return layer


def check_share(name: str, share: float, most: float = 1.0) -> float:
    """Return a share of the tokens, or raise ValueError if it is not from 0 to ``most``."""
    if not 0 <= share <= most:
        raise ValueError(f"{name} is a share of the tokens from 0 to {most:g}; got {share}")
    return share
