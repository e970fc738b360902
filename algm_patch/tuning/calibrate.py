"""The threshold of a data set, measured once with the unpatched model's tokens (paper §3.3)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from ..core.thresholds import clap_tau
from ..settings.record import Calibrated
from ..trunks import handle_of
from .images import Images, image_batches
from .probe import similarities


def calibrate(model: nn.Module, images: Images) -> float:
    """Set the threshold from the windows of a whole data set instead of each image's own.

    Applies the rule that ``model.algm.tau`` names ("auto" if it is a number) to all windows of all images together.
    From then on the rule's name stands for this value, ``model.algm.calibrated_tau``, as long as ``clap_layer``,
    ``window``, ``compare`` and ``place`` stay the same. ``model.algm.settings`` carries the value: settings that are
    saved, loaded and applied again use it. ``apply_algm`` without these settings forgets it. A compiled model is
    measured eagerly and stays compiled. Do not run the model in another thread meanwhile.

    Args:
        model: patched, with a CLAP layer and with thresholds (``merge_to`` is None).
        images: a folder, or an iterable of paths, PIL images or uint8 arrays [H, W, 3], all as for
            ``algm_patch.viz.contact_sheet``: they are resized to the model's input and normalised as its library says.
            Files of the folder that cannot be read are left out, with a warning. Or as the model takes them, on any
            device and in any floating point dtype: a tensor [B, 3, H, W] or [3, H, W], or an iterable of these, such as
            a list of images of any sizes or a DataLoader. If an item is a tuple, list or dict (images with labels), its
            first tensor is used.

    Returns:
        The threshold.

    Raises:
        ValueError: if the model is not patched, CLAP is off, ``merge_to`` is set, there are no images, none has a
            window, or the threshold is not finite.
        TypeError: if an item holds no image, or ``model`` is none.
        OSError: if a folder or file is not there, or cannot be read as an image.
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
    with handle.using(tau="auto", gbm_layers=(), gbm_tau="adaptive"):
        found = [
            similarities(model, "CLAP", [layer], partial(model, batch))[0] for batch in image_batches(model, images)
        ]
    if not found:
        raise ValueError("calibrate got no images. Give a folder with images in it, or images")
    if not sum(map(len, found)):
        raise ValueError(
            f"calibrate: no {handle.window} window in {len(found)} batches of images. Give images that are larger"
        )
    value = float(clap_tau(torch.cat(found)[None], rule))
    if not math.isfinite(value):
        raise ValueError(f"calibrate: the windows' similarities give tau {value}. Remove NaN and inf from the images")
    settings = handle.settings.replace(tau=rule)
    measured_with = (settings.window, settings.compare, settings.place)
    handle.update(settings=settings, calibrated=Calibrated(value, rule, layer, *measured_with))
    return value
