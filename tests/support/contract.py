"""The parts of the adapters' contract: cases, precisions, a plan that permutes tokens, the traces of a patch.

The models of the cases are in cases_*.py, one file a library; cases.py has them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.core.plan import Plan
from algm_patch.functional import TokenMap

# Both merges, and a threshold that some of the small models' tokens pass and some do not.
SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
UNMERGED = LayerTokens(None, None, 0)


@dataclass(frozen=True)
class Case:
    """A model, its images, and how to get its final tokens.

    Attributes:
        build: makes the model.
        image: makes a batch of images [B, 3, H, W].
        tokens: from the model and images to the final tokens [B, P+N, D].
        position_inputs: from a number of tokens to arguments of ``tokens`` whose meaning depends on the tokens' order.
    """

    build: Callable[[], Any]
    image: Callable[[], Tensor]
    tokens: Callable[..., Tensor]
    position_inputs: Callable[[int], dict[str, Tensor]]


# How the computation is done: the parameters' dtype, and the context of the forward pass.
PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], contextlib.AbstractContextManager[Any]]]] = {
    "float32": (torch.float32, contextlib.nullcontext),
    "bfloat16": (torch.bfloat16, contextlib.nullcontext),
    "autocast": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
}


def tokens_of(output: Any) -> Tensor:
    """Return the tokens in a block's output."""
    return output[0] if isinstance(output, tuple) else output


def token_map_after(model: Any, block: int) -> TokenMap:
    """Return the map from the original tokens to those that a block (counted from 0) left in the last pass."""
    token_map: TokenMap = model.algm.last_pass.blocks[block].after
    return token_map


def trace(model: nn.Module) -> list[tuple[str, type, list[str], list[list[int]]]]:
    """Return everything that a patch could leave behind: each module's class, attributes and hooks."""
    return [
        (name, type(module), list(module.__dict__), [list(module._forward_hooks), list(module._forward_pre_hooks)])
        for name, module in model.named_modules()
    ]


class Permutation(Plan):
    """A plan that moves the patches and merges none. It is carried out all the same."""

    merges = True

    def __post_init__(self) -> None:
        """Leave ``merges`` as it is, though no token is fewer."""


def permute(x: Tensor, grid: Any, tau: Any, window: Any, num_prefix_tokens: int, how_many: Any) -> Permutation:
    """Return a plan, in place of CLAP's, that shuffles the patches."""
    patches = torch.randperm(x.shape[1] - num_prefix_tokens) + num_prefix_tokens
    order = torch.cat([torch.arange(num_prefix_tokens), patches])
    ones = torch.ones(x.shape[:2])
    return Permutation(TokenMap(order.expand(x.shape[:2]), ones), ones, torch.zeros(()), torch.zeros(0))


def permute_in_place_of_clap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every CLAP layer shuffle the patches and merge none of them."""
    monkeypatch.setattr("algm_patch.patching.forward_pass.plan_clap", permute)
