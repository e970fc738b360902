"""Add the weights of merged keys to attention that takes no mask."""

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
    """Add a bias to the attention logits that are computed while the mode is entered.

    It joins the mask of ``scaled_dot_product_attention``, or the logits that attention itself gives to ``softmax``.

    Args:
        bias: [B, 1, 1, L], for each key.

    Attributes:
        used: True once there were such logits.
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
            return self.attend(*args, **kwargs)
        if function in SOFTMAX and args and self.are_logits(args[0]):
            self.used = True
            return function(self.add_to(args[0]), *args[1:], **kwargs)
        return function(*args, **kwargs)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Call ``scaled_dot_product_attention`` with the bias in its mask."""
        bias = self.bias.to(query.dtype)
        if attn_mask is not None:
            bias = torch.where(attn_mask, bias, -torch.inf) if attn_mask.dtype == torch.bool else attn_mask + bias
        return scaled_dot_product_attention(query, key, value, bias, *args, **kwargs)

    def are_logits(self, x: Tensor) -> bool:
        """Return whether a tensor is [B, heads, L, L] or [B * heads, L, L]."""
        batch, length = self.bias.shape[0], self.bias.shape[-1]
        square = x.dim() in (3, 4) and x.shape[-1] == length and x.shape[-2] == length
        return square and (x.shape[0] == batch if x.dim() == 4 else x.shape[0] % batch == 0)

    def add_to(self, logits: Tensor) -> Tensor:
        """Return logits [B, heads, L, L] or [B * heads, L, L] with the bias of each key added."""
        bias = self.bias.to(logits.dtype)
        if logits.dim() == 4:
            return logits + bias
        return (logits.unflatten(0, (bias.shape[0], -1)) + bias).flatten(0, 1)


def with_key_bias(bias: Tensor, attention: Any, *args: Any, **kwargs: Any) -> Any:
    """Call attention, with a bias [B, 1, 1, L] added to the logits of each key.

    Args:
        args, kwargs: of the attention's forward.

    Raises:
        ValueError: if the bias had no effect, because attention computes its logits elsewhere.
    """
    output, used = beside(call_in_mode, bias, attention, *args, **kwargs)
    if not used:
        raise ValueError(
            f"proportional_attention=True: {type(attention).__name__} takes no mask, and calls neither "
            "scaled_dot_product_attention nor softmax of logits [B, heads, L, L], where ALGM could add the weights of "
            "merged keys. Set model.algm.proportional_attention = False"
        )
    return output


def call_in_mode(bias: Tensor, attention: Any, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    """Call attention in `KeyBias`. Return its output, and whether the bias was used."""
    mode = KeyBias(bias)
    with mode:
        output = attention(*args, **kwargs)
    return output, mode.used
