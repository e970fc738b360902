"""Compute the cost of a block from the sizes of its weights. Multiply and add count as two operations, as in torch."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .unpatched import unpatched

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class BlockCost:
    """Compute what a block costs, from the number of its tokens.

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


def block_cost(
    block: nn.Module, mlp_half: Callable[[Any, Tensor], Tensor], *, positional: Collection[nn.Module] = ()
) -> BlockCost:
    """Return the cost of a block from the sizes of its linear layers and convolutions.

    A module is attention if its name or its class says so. If none does, attention has the layers that the block's MLP
    half does not run. Queries, keys and values have as many numbers a token, over all heads, as attention's last layer
    takes: keys that several heads share are multiplied for each of these heads.

    Args:
        mlp_half: the second half of the block, by its adapter.
        positional: modules in the block that are applied to positions, and not to tokens.

    Raises:
        ValueError: if no layers of attention are found.
    """
    attentions = [layers for module in attention_modules(block) if (layers := layers_in(module, positional))]
    if not attentions and layers_in(block) and (rest := layers_in(*without_mlp(block, mlp_half))):
        attentions = [rest]
    if not attentions:
        raise ValueError(
            f"what {type(block).__name__} costs is not known: it has no linear layers that are attention's. Give its "
            "Adapter a method cost(block) that returns a BlockCost"
        )
    attention = sum(layer.weights for layers in attentions for layer in layers)
    whole = sum(layer.weights for layer in layers_in(block, positional))
    return BlockCost(attention, whole - attention, sum(4 * layers[-1].inputs for layers in attentions))


def without_mlp(block: nn.Module, mlp_half: Callable[[Any, Tensor], Tensor]) -> tuple[nn.Module, set[nn.Module]]:
    """Return a copy of a block without memory, and the modules in it that the MLP half runs."""
    ran = set[nn.Module]()
    with torch.no_grad(), explain_failure(block, "Give its Adapter a method cost(block) that returns a BlockCost"):
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
    """Describe a matrix that tokens are multiplied with.

    Attributes:
        inputs: how many numbers of a token go in.
        weights: how many weights it has.
    """

    inputs: int
    weights: int


def layers_in(module: Any, positional: Collection[nn.Module] = ()) -> list[Layer]:
    """Return the layers of a module that every token goes through, in order.

    They are counted by the sizes that they state: their weights may be sharded, quantized or in parts (LoRA).
    """
    if module in positional:
        return []
    inner = [layer for child in module.children() for layer in layers_in(child, positional)]
    if isinstance(module, CONVOLUTIONS):  # of one token, or of its neighbours in a grid of the same size
        return [Layer(module.weight[0].numel(), module.weight.numel())]
    if all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        weights = sum(layer.weights for layer in inner) or module.in_features * module.out_features
        return [Layer(module.in_features, weights)]
    if isinstance(weight := getattr(module, "in_proj_weight", None), Tensor):  # of queries, keys and values
        return [Layer(weight.shape[1], weight.numel()), *inner]
    return inner


@contextmanager
def explain_failure(module: nn.Module, remedy: str) -> Iterator[None]:
    """Turn what a module raises when it runs by itself into a ValueError that says so and ends with the remedy."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"what {type(module).__name__} costs is not known: run by itself on a tensor without memory, it raised "
            f"{type(error).__name__}: {error}. {remedy}"
        ) from error


def without_memory(module: nn.Module) -> nn.Module:
    """Return a copy of a module, unpatched, without hooks, in eval mode, whose tensors have sizes and no memory."""
    # Not copy.copy: it pickles, which modules with parametrizations refuse.
    plain = object.__new__(unpatched(type(module)))
    plain.__dict__.update({name: value for name, value in vars(module).items() if name != "algm_part"})
    tensors = [*module.parameters(), *module.buffers()]
    copies: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for part in module.modules():  # hooks may hold what cannot be copied, such as activations
        copies |= {id(hooks): OrderedDict() for hooks in (part._forward_hooks, part._forward_pre_hooks)}
    return copy.deepcopy(plain, copies).eval()
