"""Gradients, recomputation and training without chance."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import set_reentrant_ckpt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the loss for each parameter that has one, by name."""
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def beginning_with(name: str) -> Callable[[str], str]:
    """Return what makes the message of ``torch.testing.assert_close`` begin with a name."""
    return lambda text: f"{name}: {text}"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: Any) -> None:
    """Assert that two sets of named tensors are the same, and name the tensor that is not."""
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=beginning_with(name), **tolerance)


def checkpointed(model: Any, how: str) -> Callable[[Tensor], Tensor]:
    """Return a forward of timm's ViT that recomputes in the backward pass.

    Args:
        how: "whole model", "halves of the model", "all intermediates"; anything else: block by block.
    """
    if how == "whole model":
        return lambda image: checkpoint(model.forward_features, image, use_reentrant=False)
    if how == "halves of the model":

        def by_halves(image: Tensor) -> Tensor:
            x = model._pos_embed(model.patch_embed(image))
            for part in (model.blocks[:3], model.blocks[3:]):
                x = checkpoint(part, x, use_reentrant=False)
            return model.norm(x)

        return by_halves
    model.set_grad_checkpointing()
    if how == "all intermediates":
        return lambda image: sum(model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True))
    return model.forward_features


def without_chance(model: Any) -> Any:
    """Set the model to training mode, except for what is random in it. Return the model."""
    model.train()
    for module in model.modules():
        if re.search("drop|rope", type(module).__name__, re.IGNORECASE):
            module.eval()
    return model


def gradients_with_and_without_recomputation(
    model: Any, how: str, loss: Callable[[Callable[[Tensor], Tensor]], Tensor]
) -> tuple[Any, Any]:
    """Return a model's gradients recomputed as ``checkpointed`` does, and plain.

    Args:
        loss: from a forward of the model to a number.
    """
    plain = model.forward_features
    if how == "all intermediates":
        plain = lambda image: sum(model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True))  # noqa: E731
    expected = gradients(model, loss(plain))
    set_reentrant_ckpt("reentrant" in how)
    try:
        return gradients(model, loss(checkpointed(model, how))), expected
    finally:
        set_reentrant_ckpt(False)
