"""The cost model: operations of a ViT, from the sizes of its weights and the tokens of a forward pass.

Multiply and add count apart, as in torch's counter. What counts are the products: of the patch embedding, of the
blocks' weights with their tokens, of attention between tokens, of learned position functions, and of matching. The
device, the dtype, the attention kernel and the compiler change nothing; nor do the other images of a batch. What comes
behind the last block (norms, necks, heads) costs the same before and after and is left out.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .matching import num_proposals, num_receivers

if TYPE_CHECKING:
    from .discovery import Vit
    from .passes import ForwardPass

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# The side, in pixels, of the image that shows how many pixels of a side make one token.
PROBE = 4096


@dataclass(frozen=True)
class BlockCost:
    """Hold what a block costs, as a function of its tokens.

    Attributes:
        attention: weights of its attention, each of which is multiplied once with every token.
        mlp: all its other weights of this kind.
        pairs: operations for each pair of tokens in attention.
    """

    attention: int
    mlp: int
    pairs: int

    def __call__(self, before: int, after: int) -> int:
        """Return the operations where attention sees ``before`` tokens, and the MLP ``after``."""
        return 2 * (self.attention * before + self.mlp * after) + self.pairs * before**2


@dataclass(frozen=True)
class VitCost:
    """Hold what a ViT costs for each image.

    Attributes:
        fixed: operations that depend on the grid alone: patch embedding and position functions.
        blocks: the cost of each block.
    """

    fixed: int
    blocks: Sequence[BlockCost]

    def of_images(self, past: ForwardPass) -> list[int]:
        """Return the operations for each image of a forward pass."""
        totals = [self.fixed] * past.batch
        for layer, step in past.steps.items():
            whole = [step.num_prefix_tokens + past.grid[0] * past.grid[1]] * past.batch
            before = whole if step.before is None else token_counts(step.before.sizes)
            after = whole if step.after is None else token_counts(step.after.sizes)
            in_mlp = after if past.settings.place == "before_mlp" else before
            costs = map(self.blocks[layer], before, in_mlp)
            totals = [total + cost for total, cost in zip(totals, costs, strict=True)]
            for plan in step.plans.values():
                matching = [matching_cost(n, step.num_prefix_tokens, plan.width) for n in token_counts(plan.sizes)]
                totals = [total + cost for total, cost in zip(totals, matching, strict=True)]
        return totals

    def without_merging(self, past: ForwardPass) -> int:
        """Return the operations for an image of a forward pass if nothing had merged, nor been compared."""
        patches = past.grid[0] * past.grid[1]
        counts = {layer: step.num_prefix_tokens + patches for layer, step in past.steps.items()}
        return self.fixed + sum(self.blocks[layer](count, count) for layer, count in counts.items())


def vit_cost(trunk: nn.Module, vit: Vit, grid: tuple[int, int]) -> VitCost:
    """Return what a ViT costs for images that make this grid of patches."""
    embedding = embedding_cost(trunk, vit.projection, grid)
    positions = vit.adapters[0].position_cost(trunk, grid)
    blocks = [adapter.cost(block) for block, adapter in zip(vit.blocks, vit.adapters, strict=True)]
    return VitCost(embedding + positions, blocks)


def token_counts(sizes: Tensor) -> list[int]:
    """Return how many tokens each image has, of the sizes [B, M] of its tokens, zero past an image's own."""
    counts: list[int] = (sizes > 0).sum(1).tolist()
    return counts


def matching_cost(length: int, num_prefix_tokens: int, width: int) -> int:
    """Return the operations that compare the A tokens of a sequence with its B tokens, as vectors of this width."""
    return 2 * width * num_proposals(length, num_prefix_tokens) * num_receivers(length, num_prefix_tokens)


# -- blocks


def block_cost(
    block: nn.Module, mlp_half: Callable[[Any, Tensor], Tensor], *, apart: Collection[nn.Module] = ()
) -> BlockCost:
    """Return the cost of a block from the sizes of its linear layers and convolutions.

    A module is attention if its name or its class says so. If none does, attention has the layers that the block's MLP
    half does not run. Queries, keys and values have as many numbers a token, over all heads, as attention's last layer
    takes: keys that several heads share are multiplied for each of them.

    Args:
        mlp_half: of the block's adapter.
        apart: modules in the block that are not applied to tokens.

    Raises:
        ValueError: if no layers of attention are found.
    """
    attentions = [layers for module in attention_modules(block) if (layers := layers_in(module, apart))]
    if not attentions and layers_in(block) and (rest := layers_in(*without_mlp(block, mlp_half))):
        attentions = [rest]
    if not attentions:
        raise ValueError(
            f"what {type(block).__name__} costs is not known: it has no linear layers that are attention's. Give its "
            "Adapter a method cost(block) that returns a BlockCost"
        )
    attention = sum(layer.weights for layers in attentions for layer in layers)
    whole = sum(layer.weights for layer in layers_in(block, apart))
    return BlockCost(attention, whole - attention, sum(4 * layers[-1].inputs for layers in attentions))


def without_mlp(block: nn.Module, mlp_half: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, set[nn.Module]]:
    """Return a copy of a block without memory, and the modules in it that the MLP half runs."""
    ran = set[nn.Module]()
    with torch.no_grad(), known(block, "Give its Adapter a method cost(block) that returns a BlockCost"):
        other = without_memory(block)
        for part in other.modules():
            part.register_forward_hook(lambda module, *_: ran.add(module))
        width = layers_in(block)[0].inputs
        mlp_half(other, torch.empty(1, 2, width, device="meta", dtype=next(block.parameters()).dtype))
    return other, ran


def attention_modules(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules in a block that are attention; each one of a list of them."""
    for name, module in block.named_children():
        if any(word in f"{name} {type(module).__name__}".lower() for word in ("attn", "attention")):
            yield from module if isinstance(module, nn.ModuleList) else [module]
        else:
            yield from attention_modules(module)


class Layer(NamedTuple):
    """A matrix that tokens are multiplied with: how many numbers of a token go in, and how many weights it has."""

    inputs: int
    weights: int


def layers_in(module: Any, apart: Collection[nn.Module] = ()) -> list[Layer]:
    """Return the layers of a module that every token goes through, in order.

    By the sizes that linear layers state: their weights may be sharded, quantized or in parts (LoRA).
    """
    if module in apart:
        return []
    inner = [layer for child in module.children() for layer in layers_in(child, apart)]
    if isinstance(module, CONVOLUTIONS):  # of one token, or of its neighbours in a grid of the same size
        return [Layer(module.weight[0].numel(), module.weight.numel())]
    if all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        weights = sum(layer.weights for layer in inner) or module.in_features * module.out_features
        return [Layer(module.in_features, weights)]
    if isinstance(weight := getattr(module, "in_proj_weight", None), Tensor):  # of queries, keys and values
        return [Layer(weight.shape[1], weight.numel()), *inner]
    return inner


# -- patch embedding


# By projection and grid: what runs of the modules themselves have shown.
SHOWN: WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = WeakKeyDictionary()


def embedding_cost(trunk: nn.Module, projection: nn.Module, grid: tuple[int, int]) -> int:
    """Return the operations of the patch projection and of a stem of convolutions in front of it.

    One layer is counted by its weights. How large the features inside a stem are shows a run on tensors without
    memory, of an image whose sides are whole numbers of tokens.

    Raises:
        ValueError: if they take more than an image, or leave no grid [B, D, H, W].
    """
    parts = [*stem_of(trunk, projection), projection]
    if sum(isinstance(layer, CONVOLUTIONS) for part in parts for layer in part.modules()) < 2:
        return 2 * grid[0] * grid[1] * sum(layer.weights for layer in layers_in(projection))
    shown = SHOWN.setdefault(projection, {})
    if grid not in shown:
        with torch.no_grad(), known(projection, "Time can be measured: tune(model, images, cost='time')"):
            stem = [without_memory(part) for part in parts]
            _, probed = run(stem, PROBE, PROBE)
            shown[grid], _ = run(stem, *(count * round(PROBE / side) for count, side in zip(grid, probed, strict=True)))
    return shown[grid]


def stem_of(trunk: nn.Module, projection: nn.Module) -> list[nn.Module]:
    """Return the modules with convolutions that stand in front of the projection, beside it."""
    path = next(name for name, module in trunk.named_modules() if module is projection)
    beside = list(trunk.get_submodule(path.rpartition(".")[0]).children())
    before = beside[: beside.index(projection)]
    return [module for module in before if any(isinstance(layer, CONVOLUTIONS) for layer in module.modules())]


@contextmanager
def known(module: nn.Module, remedy: str) -> Iterator[None]:
    """Turn what a module raises when it runs by itself into a ValueError that says so and what to do."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"what {type(module).__name__} costs is not known: run by itself on a tensor without memory, it raised "
            f"{type(error).__name__}: {error}. {remedy}"
        ) from error


def without_memory(module: nn.Module) -> nn.Module:
    """Return a copy of a module, unpatched, without hooks, in eval mode, whose tensors have sizes and no memory."""
    plain = object.__new__(getattr(type(module), "_algm_original", type(module)))
    plain.__dict__.update({name: value for name, value in vars(module).items() if name != "_algm"})
    tensors = [*module.parameters(), *module.buffers()]
    copies: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for part in module.modules():  # hooks may hold what cannot be copied, such as activations
        copies |= {id(hooks): OrderedDict() for hooks in (part._forward_hooks, part._forward_pre_hooks)}
    return copy.deepcopy(plain, copies).eval()


def run(stem: Sequence[nn.Module], height: int, width: int) -> tuple[int, tuple[int, int]]:
    """Return the operations of modules without memory on an image of this size, and the grid that they leave."""
    total = 0

    def count(layer: Any, _: object, output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * layer.weight[0].numel()

    layers = [layer for part in stem for layer in part.modules() if isinstance(layer, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    channels = next(layer.in_channels for layer in layers if isinstance(layer, CONVOLUTIONS))
    x: Any = torch.empty(1, channels, height, width, device="meta", dtype=layers[0].weight.dtype)
    for part in stem:
        x = part(x)
        x = x[-1] if isinstance(x, (list, tuple)) else x
    for hook in hooks:
        hook.remove()
    return total, (x.shape[2], x.shape[3])
