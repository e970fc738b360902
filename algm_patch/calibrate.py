"""A data set's threshold, measured once with the unpatched model's tokens (paper §3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .handle import Algm, calibration_key, eval_mode, handle_of
from .merging import clap_tau


def calibrate(model: nn.Module, images: Tensor | Iterable[Any]) -> float:
    """Set the threshold from the windows of a whole data set instead of each image's own.

    The rule is the one that ``model.algm.tau`` names ("auto" if it is a number so far), applied to all windows of
    all images together. From then on the rule's name stands for this value wherever ``clap_layer`` and ``window``
    are those of now, until apply_algm is called anew. Do not run the model in another thread meanwhile.

    Args:
        model: patched, with a CLAP layer.
        images: as the model takes them, on any device and in any floating point dtype: a tensor [B, 3, H, W] or
            [3, H, W], or an iterable of these, such as a list of images of any sizes or a DataLoader. Of a tuple,
            list or dict (images with labels) the first tensor counts.

    Returns:
        The threshold.

    Raises:
        ValueError: if the model is not patched, CLAP is off, there is nothing to measure, or it is not finite.
        TypeError: if an item holds no tensor.
    """
    handle = handle_of(model)
    layer = handle.clap_layer
    if layer is None:
        raise ValueError("calibrate: clap_layer is None. Set model.algm.clap_layer to the layer to measure in")
    rule = handle.tau if isinstance(handle.tau, str) else "auto"
    batches = [images] if isinstance(images, Tensor) else images
    similarities = [window_similarities(model, layer, first_tensor(item)) for item in batches]
    if not sum(map(len, similarities)):
        raise ValueError(f"calibrate: no {handle.window} window in {len(similarities)} batches of images")
    value = float(clap_tau(torch.cat(similarities)[None], rule))
    if not math.isfinite(value):
        raise ValueError(f"calibrate: the windows' similarities give tau {value}. Are there NaN in the images?")
    handle.tau = rule
    handle._calibrations[calibration_key(handle.settings)] = value
    return value


class Measured(Exception):  # noqa: N818, nothing went wrong
    """Ends a forward pass whose windows are measured."""


def window_similarities(model: nn.Module, layer: int, images: Tensor) -> Tensor:
    """[K] similarities of all windows of the images, in the tokens of CLAP's layer. Runs no further than there."""
    handle = handle_of(model)
    parameter = next(model.parameters(), images)
    images = (images if images.dim() == 4 else images[None]).to(parameter.device, parameter.dtype)
    with torch.no_grad(), eval_mode(model), up_to(layer, handle):
        model(images)
    similarities = handle.window_similarity.flatten().cpu()
    handle._forget()
    return similarities


@contextmanager
def up_to(layer: int, handle: Algm) -> Iterator[None]:
    """Within, a forward pass measures CLAP's windows, whatever the settings, and ends there."""

    def stop(*_: Any) -> None:
        raise Measured

    settings = handle.settings
    hook = handle._vit.blocks[layer - 1].register_forward_hook(stop)
    handle._set(replace(settings, tau="auto", gbm_layers=()))
    try:
        yield
    except Measured:
        pass
    finally:
        hook.remove()
        handle._set(settings)


def first_tensor(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"calibrate expects image tensors, alone or first in a tuple, list or dict; got {type(item)}")
