"""What merges where, and what becomes of the prediction: arrays to look at, from an image and a patched model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..core.eval_mode import eval_mode
from ..core.token_map import TokenMap
from ..deprecated import model_first
from ..handle import Algm, handle_of
from ..patching.find_vit import class_name
from ..patching.forward_pass import ForwardPass
from ..tuning.judges import AGREEMENT, CLASS_MAPS, COSINE, judge_of, token_shapes
from ..tuning.measure import NOTHING
from .normalization import normalization
from .paint import (
    Array,
    Canvas,
    check_palette,
    distinct_colours,
    number_of_classes,
    paint_classes,
    paint_difference,
    paint_groups,
    paint_similarity,
)

# A picture's longer side in pixels: larger ones are shown smaller.
LARGEST = 2048

Predict = Callable[[nn.Module, Tensor], Tensor]


@model_first
def panels(model: nn.Module, image: Any, predict: Predict | None = None, palette: Any = None) -> dict[str, Array]:
    """Run a patched model on one image and show what merged.

    Args:
        model: patched.
        image: a PIL image or a uint8 array [H, W, 3], which is resized to the model's input and normalised as its
            library says: timm, open_clip, mmengine, or the image processor of a transformers model (that of its
            checkpoint, if it is on this machine, or else of its class); else by ImageNet's mean and deviation. Shown in
            its own proportions and resolution, at most 2048 pixels a side. Or a tensor [3, H, W] or [1, 3, H, W] as the
            model takes it.
        predict: from the model and images [1, 3, h, w] to class logits [1, C, h, w], classes [1, h, w] of whole numbers
            or a map of values [1, h, w] or [1, 1, h, w]. None: no predictions are shown. It runs the model once, or
            more than once on the same. Classes below 0, and 255 unless there are so many, mean that a pixel has no
            class; these are shown in light grey.
        palette: [C, 3], numbers from 0 to 255, the colours of the classes. Default: colours that colour-blind people
            can tell apart.

    Returns:
        By title, in order: the image [H, W, 3] uint8; if CLAP ran, the similarity of the windows [H, W] float32, NaN
        where no window fits; after each merge the groups [H, W, 3] uint8, in their mean colours and outlined; with
        ``predict``, its result without merging, with it, and where they differ: [H, W, 3] of classes, [H, W] of values.

    Raises:
        ValueError: if the model is not patched, the tensor is not one image, the palette is too short, ``predict``
            returns what cannot be shown, or its ViT is not run, or on parts or variants of the image.
        TypeError: if ``image`` is none of the above.
    """
    if palette is not None:
        palette = check_palette(palette)
    view = look(model, image, predict)
    past, shown = view.past, {"image": view.picture}
    windows = next((step.plans["CLAP"].similarity for step in past.blocks.values() if "CLAP" in step.plans), None)
    if windows is not None and windows.numel():
        title = f"similarity in {'×'.join(map(str, past.settings.window))} windows"
        similarity = windows[0].float().cpu().numpy()
        shown[title] = paint_similarity(similarity, past.settings.window, past.grid, view.canvas)
    for layer, step in sorted(past.blocks.items()):
        if step.plans and step.after is not None:
            groups, count = view.groups(step.after)
            shown[f"{' and '.join(step.plans)} in layer {layer + 1}: {count}"] = groups
    if predict is not None:
        shown |= predictions(view, palette)
    return shown


def last_groups(model: nn.Module, image: Any) -> tuple[Array, Array, str]:
    """Return an image, as in :func:`panels`, the groups that the last layer leaves, and in words how many they are."""
    view = look(model, image)
    return view.picture, *view.groups(view.past.token_map)


@dataclass(frozen=True)
class View:
    """One image, as a patched model saw it.

    Attributes:
        picture: [H, W, 3] uint8.
        canvas: where the tokens are on it.
        past: the forward pass on it.
        answers: what was predicted without merging, and with it; None if nothing was to be.
    """

    picture: Array
    canvas: Canvas
    past: ForwardPass
    answers: tuple[Any, Any] | None

    def groups(self, after: TokenMap) -> tuple[Array, str]:
        """Return the groups of a token map, painted, and in words how many they are."""
        high, wide = self.past.grid
        groups = after.labels[0, -high * wide :].view(high, wide).cpu().numpy()
        count = len(np.unique(groups))
        told = f"{count} of {groups.size} tokens" if count < groups.size else "nothing merged"
        return paint_groups(self.picture, groups, self.canvas), told


@torch.no_grad()
def look(model: nn.Module, image: Any, predict: Predict | None = None) -> View:
    """Run a patched model on one image: with ``predict`` without merging, and then with it."""
    handle = handle_of(model)
    trunk = handle.runtime.trunk
    tensor, picture = prepare(model, image, trunk)
    parameter = next(model.parameters(), tensor)
    tensor = tensor.to(parameter.device, parameter.dtype)
    answers = None
    with eval_mode(model):
        if predict is None:
            run(handle, lambda: model(tensor), f"the forward of {class_name(model)}")
        else:
            answer = partial(predict, model, tensor)
            with handle.using(**NOTHING, merge_to=None):
                before = run(handle, answer, "predict")
            answers = before, run(handle, answer, "predict")
    past = handle.last_pass
    if answers is not None:
        check_maps(answers, token_shapes(past.grid, past.num_prefix_tokens, past.width))
    seen = tensor.shape[2], tensor.shape[3]
    canvas = Canvas(picture.shape[:2], seen, pixels_per_token(trunk, past.grid, seen))
    return View(picture, canvas, past, answers)


def run(handle: Algm, answer: Callable[[], Any], name: str) -> Any:
    """Return the answer to one image, of which ``handle`` then knows the forward pass.

    Raises:
        ValueError: if the ViT did not run, or took several images, or images that differ: windows, flips, scales.
            There is no one pass to be shown then.
    """
    taken: list[Tensor] = []
    hook = handle.runtime.vit.projection.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    handle.runtime.forget()
    try:
        found = answer()
    finally:
        hook.remove()
    if not taken:
        raise ValueError(
            f"{name} did not run the ViT ({handle.runtime.model_name}) on the image, so there is nothing to show. "
            "Pass predict=function(model, images) that runs the patched model on the images it is given"
        )
    batch = max(map(len, taken))
    if batch > 1 or any(other.shape != taken[0].shape or not torch.equal(other, taken[0]) for other in taken[1:]):
        raise ValueError(
            f"{name} ran the ViT ({handle.runtime.model_name}) {len(taken)} times, on up to {batch} images at once, "
            "which are not all the same (windows, flips, scales?), so there is no one grid of tokens to show. Pass "
            "predict=function(model, images) that runs the patched model on the whole image"
        )
    return found


def check_maps(answers: tuple[Any, Any], tokens: set[tuple[int, ...]]) -> None:
    """Raise TypeError or ValueError if an answer is none that can be shown as a map."""
    for answer in answers:
        if judge_of(answer, tokens) is COSINE:
            raise ValueError(
                f"predict returned tokens {list(answer.shape)}, which are no map. Pass predict=function(model, images) "
                "that returns logits [B, classes, h, w], classes [B, h, w] or values [B, 1, h, w]"
            )


def predictions(view: View, palette: Array | None) -> dict[str, Array]:
    """Return the panels of what was predicted without merging and with it, and of where the two differ."""
    assert view.answers is not None
    one, other = (at_size(answer, view.picture.shape[:2]) for answer in view.answers)
    if one.dtype == np.float32:
        return {"prediction, unpatched": one, "prediction, merging": other, "difference": np.abs(one - other)}
    colours = distinct_colours(number_of_classes(one, other)) if palette is None else palette
    return {
        "prediction, unpatched": paint_classes(one, colours),
        "prediction, merging": paint_classes(other, colours),
        f"where they differ: {(one != other).mean():.1%} of the pixels": paint_difference(view.picture, one, other),
    }


def at_size(answer: Tensor, size: tuple[int, int]) -> Array:
    """Return one image's answer at the size of its picture: classes [H, W] int64, or values [H, W] float32."""
    judge = judge_of(answer)
    if judge is CLASS_MAPS:
        # On the CPU: not every device has float64, the floating point numbers that hold every class.
        classes = answer.cpu().reshape(1, 1, *answer.shape[-2:]).double()
        return interpolate(classes, size, mode="nearest")[0, 0].long().numpy()
    maps = answer.float().reshape(1, -1, *answer.shape[-2:])
    maps = interpolate(maps, size, mode="bilinear")[0]
    return (maps.argmax(0) if judge is AGREEMENT else maps[0]).cpu().numpy()


def prepare(model: nn.Module, image: Any, trunk: Any = None) -> tuple[Tensor, Array]:
    """Return a model's input [1, 3, h, w], and the picture [H, W, 3] uint8 that it is of.

    Args:
        image: as for :func:`panels`.
        trunk: the ViT in the model. Default: the model is it.
    """
    trunk = model if trunk is None else trunk
    mean, std = normalization(model, trunk)
    if isinstance(image, np.ndarray):
        from PIL import Image

        image = Image.fromarray(image)
    if hasattr(image, "convert"):
        picture = image.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        wide, high = input_size(trunk)[::-1]
        pixels = torch.from_numpy(np.array(picture.resize((wide, high)))).permute(2, 0, 1)
        return ((pixels / 255 - mean) / std)[None], np.array(picture)
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a tensor, a PIL image or a uint8 array [H, W, 3]; got {type(image)}")
    tensor = image[None] if image.dim() == 3 else image
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(f"image is one image, [3, H, W] or [1, 3, H, W]; got {list(image.shape)}")
    pixels = (tensor[0].detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return tensor, pixels.round().byte().permute(1, 2, 0).numpy()


def input_size(trunk: Any) -> tuple[int, int]:
    """Return height and width of the model's own input, which may not be that of its checkpoint."""
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    size = size or getattr(getattr(trunk, "config", None), "image_size", None)
    if size is None:
        import timm.data

        size = timm.data.resolve_model_data_config(trunk)["input_size"][1:]
    high, wide = (size, size) if isinstance(size, int) else size
    return high, wide


def pixels_per_token(trunk: Any, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a token in an input of this size. If the model says nothing, the size over the grid."""
    embedding: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embedding, "feat_ratio"):
        high, wide = embedding.feat_ratio(as_scalar=False)
        return high, wide
    return -(-size[0] // grid[0]), -(-size[1] // grid[1])
