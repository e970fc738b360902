"""Run a decoder on merged tokens, and give its results back on the full grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .forward_pass import ForwardPass
from .runtime import Runtime
from .tracker import decoding


def decode(runtime: Runtime, decoder: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a decoder on merged tokens: on one image after the other, if they have different numbers of them.

    Raises:
        RuntimeError: if the forward pass of the tokens is not known.
    """
    passes = runtime.passes
    forward_pass = passes.that_left(x)
    if forward_pass is None:
        raise RuntimeError(
            f"unmerge_at='after_head': the decoder was given tokens that ALGM cannot trace to a forward pass of "
            f"{runtime.model_name}. Hand it what that returned, or a slice of it; or call apply_algm with "
            "unmerge_at='before_head'"
        )
    images = images_of(forward_pass, x)
    if images is None:
        with decoding(passes, forward_pass):
            return decoder(x, *args, **kwargs)
    results = []
    for image, one in enumerate(images):
        with decoding(passes, forward_pass, image):
            results.append(decoder(one, *args, **kwargs))
    return torch.cat(results)


def images_of(forward_pass: ForwardPass, x: Tensor) -> list[Tensor] | None:
    """Return merged tokens [B, P+M, D] or [B, M, D] as [1, m, D] each; None if all have the same number."""
    packing = forward_pass.token_map.packing
    return None if packing is None else packing.images(x)


def unmerge_decoded(runtime: Runtime, x: Tensor) -> Tensor:
    """Return the output of a decoder's head, one result a token, on the full grid."""
    decoded = runtime.passes.decoded
    if decoded is None:
        return x
    forward_pass, image = decoded
    return forward_pass.unmerge(x, image)
