"""What ALGM is compared with, and ALGM itself, each as a way to run one model: ``with method.patch(model): ...``.

All share the library's parts (matching, merging, proportional attention through the mask that attention has, fused
attention kept, unmerged by copying before the final norm), so that a difference between them is one of the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from cost import layer_by_layer
from segmentation import number_or_rule
from timm.layers import Attention
from torch import Tensor, nn

from algm_patch import Settings, apply_algm, remove_algm
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.core.matching import best_matches, gbm_leaders
from algm_patch.core.plan import planning
from algm_patch.functional import TokenMap
from algm_patch.patching.find_vit import Vit, find_vit
from algm_patch.report.cost import vit_cost

# The authors' thresholds: Segmenter on ADE20K (Ti, S, B, L), Cityscapes, Pascal-Context.
PUBLISHED_TAUS = (0.88, 0.9, 0.94, 0.95, 0.955)


@dataclass(frozen=True)
class Method:
    """One point of a curve of the trade-off.

    Attributes:
        name: of the curve.
        setting: the point on it, as a label.
        patch: given a model, a context manager in which the model runs this way, and after which it is as before.
    """

    name: str
    setting: str
    patch: Callable[[nn.Module], AbstractContextManager[None]] = field(repr=False)


def unpatched() -> Method:
    return Method("unpatched", "", lambda model: nullcontext())


def tome_methods(rs: Iterable[int]) -> list[Method]:
    return [Method("ToMe", f"r={r}", partial(tome, r=r)) for r in rs]


def pooling_methods(layers: Iterable[int]) -> list[Method]:
    """All 2x2 windows of a layer become their mean, whatever is in them: CLAP with a threshold that all pass.

    With proportional attention, which is the better for it (CamVid, layer 1: 45.0 mIoU, without 42.5).
    """
    return [
        Method("2×2 pooling", f"layer {layer}", partial(algm, clap_layer=layer, gbm_layers=[], tau=-1))
        for layer in layers
    ]


def published_methods(taus: Iterable[float] = PUBLISHED_TAUS) -> list[Method]:
    """ALGM as its authors run it: constants for τ, layers 1 and 5, attention without the sizes of the tokens."""
    fixed = {"clap_layer": 1, "gbm_layers": [5], "gbm_tau": "adaptive", "proportional_attention": False}
    return [Method("ALGM as published", f"τ={tau}", partial(algm, tau=tau, **fixed)) for tau in taus]


def default_methods(taus: Iterable[float | str]) -> list[Method]:
    """ALGM as ``apply_algm(model, tau=...)`` does it."""
    return [Method("ALGM defaults", f"τ={tau}", partial(algm, tau=tau)) for tau in taus]


def tuned_methods(paths: Iterable[Path]) -> list[Method]:
    """ALGM with settings that ``tune`` found and saved."""
    return [Method("ALGM tuned", path.stem, partial(algm, **Settings.load(path))) for path in paths]


def add_options(
    parser: argparse.ArgumentParser,
    tome: Sequence[int],
    pooling: Sequence[int],
    published: Sequence[float],
    tau: Sequence[float | str],
) -> None:
    """Options that say which methods are compared, with these defaults."""
    group = parser.add_argument_group("methods (an option without values leaves its method out)")

    def add(option: str, default: Sequence[Any], what: str, **rest: Any) -> None:
        shown = f"{what} (default: {' '.join(map(str, default))})" if default else what
        group.add_argument(option, nargs="*", default=default, help=shown, **rest)

    add("--tome", tome, "ToMe: tokens that merge in each layer", type=int, metavar="R")
    add("--pooling", pooling, "2x2 pooling: layers to pool in, one at a time", type=int, metavar="LAYER")
    add("--published", published, "ALGM as published, at these thresholds", type=float, metavar="TAU")
    add("--tau", tau, "ALGM with this library's defaults, at these thresholds", type=number_or_rule, metavar="TAU")
    add("--settings", [], "ALGM tuned: files that Settings.save wrote", type=Path, metavar="FILE")


def chosen(options: argparse.Namespace) -> list[Method]:
    """The methods that :func:`add_options` asks for, the unpatched model first."""
    return [
        unpatched(),
        *pooling_methods(options.pooling),
        *tome_methods(options.tome),
        *published_methods(options.published),
        *default_methods(options.tau),
        *tuned_methods(options.settings),
    ]


@contextmanager
def algm(model: nn.Module, **settings: Any) -> Iterator[None]:
    """Within, the model is patched with these arguments of ``apply_algm``."""
    apply_algm(model, settings=settings)
    try:
        yield
    finally:
        remove_algm(model)


# -- Token Merging: Your ViT But Faster (Bolya et al., ICLR 2023), from the paper


@contextmanager
def tome(model: nn.Module, r: int) -> Iterator[None]:
    """Within, r tokens merge in each layer, between attention and MLP (ToMe, §3).

    Every token at an even position proposes to the token at an odd position whose key (mean over the heads) is most
    similar by cosine; the r best proposals are carried out, as means weighted by size. A merged token weighs in
    attention as much as the tokens it holds. The class token and other prefix tokens neither leave nor receive. The
    last block gives back the full grid, by copying; what else reads between the blocks finds merged tokens.

    Tokens stay in raster order, a merged one where its first member stood. In the paper's order (what is left of the
    even positions, then the odd ones) it does no better: on a third of CamVid's val, as in tradeoff.py, 56.2 mIoU
    instead of 56.1 at r=50, 55.1 instead of 55.8 at r=70.

    Args:
        model: with one ViT of timm in it, whose attention is ``timm.layers.Attention``.
        r: at least 0.

    Raises:
        ValueError: if the model or r does not fit; or, in a forward pass, if fewer than r proposals are left.
    """
    if r < 0:
        raise ValueError(f"ToMe merges r tokens a layer, at least 0; got r={r}")
    trunk, vit = find_vit(model)
    for number, block in enumerate(vit.blocks, 1):
        attention = getattr(block, "attn", None)
        if type(attention) is not Attention:
            raise ValueError(
                f"ToMe reads the keys of timm.layers.Attention, but block {number} of {type(trunk).__name__} "
                f"({type(block).__name__}) has a {type(attention).__name__}"
            )
        if "_algm" in block.__dict__:
            raise ValueError(f"{type(trunk).__name__} is patched with ALGM. Call remove_algm first")
    merger = TokenMerger(r, trunk, vit)
    hooks = [block.attn.k_norm.register_forward_hook(merger.see_keys) for block in vit.blocks]
    for layer, (block, adapter) in enumerate(zip(vit.blocks, vit.adapters, strict=True)):
        block._tome = partial(merger.run_block, adapter, layer)
        block.__class__ = tome_class(type(block))
    try:
        yield
    finally:
        for block, hook in zip(vit.blocks, hooks, strict=True):
            block.__class__ = type(block).__base__
            del block._tome
            hook.remove()


@cache
def tome_class(original: Any) -> Any:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self._tome(self, x, *args, **kwargs)

    return type(original.__name__, (original,), {"forward": forward})


class TokenMerger:
    """ToMe in the blocks of one model: what is merged so far in the forward pass under way."""

    def __init__(self, r: int, trunk: Any, vit: Vit) -> None:
        self.r, self.trunk, self.vit = r, trunk, vit
        self.num_prefix_tokens, self.depth = getattr(trunk, "num_prefix_tokens", 0), len(vit.blocks)
        self.token_map: TokenMap | None = None
        self.keys: Tensor | None = None

    @contextmanager
    def grids(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        """Note the number of images and the grid of every forward pass."""
        found: list[tuple[int, tuple[int, int]]] = []
        note = self.vit.projection.register_forward_hook(
            lambda _, __, patches: found.append((len(patches), (patches.shape[2], patches.shape[3])))
        )
        try:
            yield found
        finally:
            note.remove()

    def operations(self, grid: tuple[int, int]) -> int:
        """Return those of the ViT for an image of this grid, matching by keys included."""
        length, layers = self.num_prefix_tokens + grid[0] * grid[1], range(1, self.depth + 1)
        left = {layer: length - layer * self.r for layer in layers}
        compared = dict.fromkeys(layers if self.r else (), self.vit.blocks[0].attn.head_dim)
        return layer_by_layer(vit_cost(self.trunk, self.vit, grid), length, self.num_prefix_tokens, left, compared)

    def see_keys(self, _: nn.Module, __: tuple[Tensor], keys: Tensor) -> None:
        self.keys = keys

    def run_block(self, adapter: Any, layer: int, block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if layer == 0:
            self.token_map = None
        bias = None if self.token_map is None else self.token_map.key_bias.to(x.dtype)
        tokens = LayerTokens(self.token_map, bias, self.num_prefix_tokens)
        x = adapter.attention_half(block, x, tokens, *args, **kwargs)
        if self.r:
            x = self.merge(layer, x)
        x = adapter.mlp_half(block, x)
        if layer + 1 < self.depth or self.token_map is None:
            return x
        return self.token_map.unmerge(x)

    def merge(self, layer: int, x: Tensor) -> Tensor:
        keys, self.keys = self.keys, None
        assert keys is not None  # attention left them
        before = self.token_map
        with planning(x):
            sizes = x.new_ones(x.shape[:2], dtype=torch.float32) if before is None else before.sizes
            similarity, proposer, partner = best_matches(keys.mean(1), self.num_prefix_tokens)
            if self.r > len(proposer):
                raise ValueError(
                    f"ToMe was to merge r={self.r} of the {x.shape[1]} tokens of block {layer + 1}, but only "
                    f"{len(proposer)} can propose. Use a smaller r, or larger images"
                )
            best = similarity.topk(self.r)
            every = torch.ones_like(best.indices, dtype=torch.bool)
            leaders = gbm_leaders(every, proposer[best.indices], partner.gather(1, best.indices), x.shape[1])
            step = TokenMap.from_leaders(leaders, sizes, x.shape[1] - self.r)
        self.token_map = step if before is None else before.then(step)
        return step.merge(x, sizes)
