"""Panels: what merges where, and what becomes of the prediction, as arrays to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..deprecated import model_first
from ..tuning.judges import CLASS_LOGITS, CLASS_MAPS, correlation, judge_of
from .paint import (
    Array,
    check_palette,
    distinct_colours,
    number_of_classes,
    paint_classes,
    paint_difference,
    paint_similarity,
)
from .view import Predict, look

BEFORE, AFTER, DIFFERENCE = "prediction, unpatched", "prediction, merging", "difference"


@model_first
def panels(model: nn.Module, image: Any, predict: Predict | None = None, palette: Any = None) -> dict[str, Array]:
    """Run a patched model on one image and return pictures of what merged.

    Args:
        model: patched.
        image: a PIL image or a uint8 array [H, W, 3]. It is resized to the model's input and normalised as its library
            says: timm, open_clip, mmengine, or the image processor of a transformers model (that of its checkpoint, if
            it is on this machine, or else of its class); otherwise by ImageNet's mean and deviation. It is shown in
            its own proportions and resolution, at most 2048 pixels a side. Or a tensor [3, H, W] or [1, 3, H, W] as the
            model takes it.
        predict: from the model and images [1, 3, h, w] to class logits [1, C, h, w], whole numbers of classes
            [1, h, w], or a map of values [1, h, w] or [1, 1, h, w]. It runs the model once, or several times on the
            same images. Pixels of a class below 0 have no class and are shown in light grey; so are those of class 255,
            if there are fewer classes than that. None: no predictions are shown.
        palette: [C, 3], whole numbers from 0 to 255: the colours of the classes. Default: colours that colour-blind
            people can tell apart.

    Returns:
        Pictures by title, in order: the image [H, W, 3] uint8; if CLAP ran, the similarity of the windows [H, W]
        float32, NaN where no window fits; after each merge the groups [H, W, 3] uint8, outlined and tinted by
        their size; with ``predict``, the prediction without merging, the one with it, and where they differ: [H, W, 3]
        uint8 for classes, [H, W] float32 for values.

    Raises:
        ValueError: if the model is not patched, the tensor is not one image, the palette is too short, or ``predict``
            returns what cannot be shown, does not run the ViT, or runs it on parts or variants of the image.
        TypeError: if ``image`` is none of the above.
    """
    if palette is not None:
        palette = check_palette(palette)
    view = look(model, image, predict)
    forward_pass, shown = view.forward_pass, {"image": view.picture}
    window = forward_pass.settings.window
    plans = (block.plans["CLAP"] for block in forward_pass.blocks.values() if "CLAP" in block.plans)
    similarity = next((plan.similarity for plan in plans), None)
    if similarity is not None and similarity.numel():
        of_windows = similarity[0].float().cpu().numpy()
        title = f"similarity in {'×'.join(map(str, window))} windows"
        shown[title] = paint_similarity(of_windows, window, forward_pass.grid, view.canvas)
    for layer, block in sorted(forward_pass.blocks.items()):
        if block.plans and block.after is not None:
            groups, count = view.groups(block.after)
            shown[f"{' and '.join(block.plans)} in layer {layer + 1}: {count}"] = groups
    if view.answers is not None:
        shown |= paint_predictions(view.answers, view.picture, palette)
    return shown


def paint_predictions(answers: tuple[Any, Any], picture: Array, palette: Array | None) -> dict[str, Array]:
    """Return the panels of the predictions without merging and with it, and of where the two differ.

    Args:
        answers: the two predictions, as ``predict`` of ``panels`` returns them.
        picture: the image [H, W, 3] uint8.
        palette: [C, 3] uint8. None: colours of its own for each class.
    """
    before, after = (at_size(answer, picture.shape[:2]) for answer in answers)
    if before.dtype == np.float32:
        title = f"{DIFFERENCE}: correlation {correlation(*answers):.4f}"
        return {BEFORE: before, AFTER: after, title: np.abs(before - after)}
    colours = distinct_colours(number_of_classes(before, after)) if palette is None else palette
    return {
        BEFORE: paint_classes(before, colours),
        AFTER: paint_classes(after, colours),
        f"where they differ: {(before != after).mean():.1%} of the pixels": paint_difference(picture, before, after),
    }


def at_size(answer: Tensor, size: tuple[int, int]) -> Array:
    """Return the prediction for one image at the size (H, W): classes [H, W] int64, or values [H, W] float32."""
    judge = judge_of(answer)
    if judge is CLASS_MAPS:
        # On the CPU: not every device has float64, the floating point numbers that hold every class.
        classes = answer.cpu().reshape(1, 1, *answer.shape[-2:]).double()
        return interpolate(classes, size, mode="nearest")[0, 0].long().numpy()
    maps = answer.float().reshape(1, -1, *answer.shape[-2:])
    maps = interpolate(maps, size, mode="bilinear")[0]
    return (maps.argmax(0) if judge is CLASS_LOGITS else maps[0]).cpu().numpy()
