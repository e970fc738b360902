"""Proportional attention for attention that takes no mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax
from torch.overrides import TorchFunctionMode

from ..core.compiling import beside

SOFTMAX = (softmax, torch.softmax, Tensor.softmax)


class KeyBias(TorchFunctionMode):
    """Add a bias to the attention logits that are computed within, whoever computes them.

    It joins the mask of ``scaled_dot_product_attention``, or the logits that attention gives to ``softmax`` itself.

    Args:
        bias: [B, 1, 1, L], for each key.

    Attributes:
        used: whether there were such logits.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias, self.used = bias, False

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is scaled_dot_product_attention:
            self.used = True
            return self.fused(*args, **kwargs)
        if function in SOFTMAX and args and self.are_logits(args[0]):
            self.used = True
            return function(self.biased(args[0]), *args[1:], **kwargs)
        return function(*args, **kwargs)

    def fused(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Call ``scaled_dot_product_attention`` with the bias in its mask."""
        bias = self.bias.to(query.dtype)
        if attn_mask is not None:
            bias = torch.where(attn_mask, bias, -torch.inf) if attn_mask.dtype == torch.bool else attn_mask + bias
        return scaled_dot_product_attention(query, key, value, bias, *args, **kwargs)

    def are_logits(self, x: Tensor) -> bool:
        """Return whether ``x`` is [B, heads, L, L] or [B * heads, L, L]."""
        batch, length = self.bias.shape[0], self.bias.shape[-1]
        square = x.dim() in (3, 4) and x.shape[-1] == length and x.shape[-2] == length
        return square and (x.shape[0] == batch if x.dim() == 4 else x.shape[0] % batch == 0)

    def biased(self, logits: Tensor) -> Tensor:
        """Return the logits, in their shape, with the bias of each key."""
        bias = self.bias.to(logits.dtype)
        if logits.dim() == 4:
            return logits + bias
        return (logits.unflatten(0, (bias.shape[0], -1)) + bias).flatten(0, 1)


def with_key_bias(bias: Tensor, attention: Any, *args: Any, **kwargs: Any) -> Any:
    """Call attention, with a bias [B, 1, 1, L] for each key.

    Raises:
        ValueError: if it had no effect, because attention computes its logits elsewhere.
    """
    output, used = beside(run_biased, bias, attention, *args, **kwargs)
    if not used:
        raise ValueError(
            f"proportional_attention=True: {type(attention).__name__} takes no mask, and calls neither "
            "scaled_dot_product_attention nor softmax of logits [B, heads, L, L], where ALGM could add the weights of "
            "merged keys. Set model.algm.proportional_attention = False"
        )
    return output


def run_biased(bias: Tensor, attention: Any, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """Call attention with the bias, and tell whether that was used."""
    mode = KeyBias(bias)
    with mode:
        output = attention(*args, **kwargs)
    return output, mode.used
