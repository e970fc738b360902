"""A data set's threshold, measured once with the unpatched model's tokens (paper §3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.eval_mode import eval_mode
from ..core.thresholds import clap_tau
from ..handle import Algm, handle_of
from ..settings.record import Calibrated
from ..settings.settings import Settings


def calibrate(model: nn.Module, images: Tensor | Iterable[Any]) -> float:
    """Set the threshold from the windows of a whole data set instead of each image's own.

    The rule is the one that ``model.algm.tau`` names ("auto" if it is a number so far), applied to all windows of
    all images together. From then on the rule's name stands for this value, ``model.algm.calibrated_tau``, wherever
    ``clap_layer``, ``window``, ``compare`` and ``place`` are those of now. ``model.algm.settings`` carries it: saved,
    loaded and applied again, they use it; calling apply_algm without them forgets it. A compiled model is measured
    eagerly, and stays compiled. Do not run the model in another thread meanwhile.

    Args:
        model: patched, with a CLAP layer and thresholds: with ``merge_to``, which keeps fixed counts, none is used.
        images: as the model takes them, on any device and in any floating point dtype: a tensor [B, 3, H, W] or
            [3, H, W], or an iterable of these, such as a list of images of any sizes or a DataLoader. Of a tuple,
            list or dict (images with labels) the first tensor counts.

    Returns:
        The threshold.

    Raises:
        ValueError: if the model is not patched, CLAP is off, ``merge_to`` is set, there is nothing to measure, or it is
            not finite.
        TypeError: if an item holds no tensor.
    """
    handle = handle_of(model)
    layer = handle.clap_layer
    if layer is None:
        raise ValueError("calibrate: clap_layer is None. Set model.algm.clap_layer to the layer to measure in")
    if handle.merge_to is not None:
        raise ValueError(
            f"calibrate: {handle.settings.named('merge_to')} keeps fixed counts, which use no threshold. "
            "Set model.algm.merge_to = None to merge by threshold"
        )
    rule = handle.tau if isinstance(handle.tau, str) else "auto"
    with measuring(handle, replace(handle.settings, tau="auto", gbm_layers=(), gbm_tau="adaptive")):
        found = [
            similarities(model, "CLAP", [layer], partial(model, batch))[0] for batch in image_batches(model, images)
        ]
    if not sum(map(len, found)):
        raise ValueError(f"calibrate: no {handle.window} window in {len(found)} batches of images")
    value = float(clap_tau(torch.cat(found)[None], rule))
    if not math.isfinite(value):
        raise ValueError(f"calibrate: the windows' similarities give tau {value}. Are there NaN in the images?")
    settings = handle.settings.replace(tau=rule)
    found_with = (settings.window, settings.compare, settings.place)
    handle.update(settings=settings, calibrated=Calibrated(value, rule, layer, *found_with))
    return value


class Stop(Exception):  # noqa: N818, nothing went wrong
    """Ends a forward pass whose similarities are known."""


def similarities(model: nn.Module, stage: str, layers: Sequence[int], run: Callable[[], object]) -> list[Tensor]:
    """[K] of all windows ("CLAP") or proposals ("GBM"), over the batch, in each of some layers, by its settings.

    Args:
        run: runs the model, which goes no further than the last of the layers.
    """

    def stop(*_: Any) -> None:
        raise Stop

    handle = handle_of(model)
    hook = handle.runtime.vit.blocks[layers[-1] - 1].register_forward_hook(stop)
    try:
        with torch.no_grad(), eval_mode(model):
            run()
    except Stop:
        pass
    finally:
        hook.remove()
    steps = handle.last_pass.blocks
    if missing := [layer for layer in layers if layer - 1 not in steps]:
        raise ValueError(
            f"{stage} cannot be measured in block {missing[0]}, which did not run: {len(steps)} of "
            f"{len(handle.runtime.vit.blocks)} blocks did. Run the whole ViT"
        )
    found = [steps[layer - 1].plans[stage].similarity.flatten().cpu() for layer in layers]
    handle.runtime.forget()
    return [similarity[similarity != -torch.inf] for similarity in found]  # which stands for none, in packed images


@contextmanager
def measuring(handle: Algm, settings: Settings) -> Iterator[None]:
    """Within, a model has other settings."""
    before = handle.settings
    handle.runtime.change(settings)
    try:
        yield
    finally:
        handle.runtime.change(before)


def image_batches(model: nn.Module, images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """Yield [B, 3, H, W] each, where the model is and in its dtype; nothing for an empty batch."""
    for item in [images] if isinstance(images, Tensor) else images:
        batch = first_tensor(item)
        if batch.shape[0] == 0:
            continue
        parameter = next(model.parameters(), batch)
        yield (batch if batch.dim() == 4 else batch[None]).to(parameter.device, parameter.dtype)


def first_tensor(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(f"calibrate expects image tensors, alone or first in a tuple, list or dict; got {type(item)}")
