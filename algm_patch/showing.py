"""What merges where, and what becomes of the prediction: arrays to look at, from an image and a patched model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .bench import NOTHING
from .calibrate import measuring
from .handle import eval_mode, handle_of
from .judges import AGREEMENT, CLASS_MAPS, judge_of
from .pictures import Array, Canvas, distinct_colours, paint_classes, paint_difference, paint_groups, paint_similarity

# A picture's longer side in pixels: larger ones are shown smaller.
LARGEST = 2048


def panels(
    image: Any,
    model: nn.Module,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    palette: Any = None,
) -> dict[str, Array]:
    """Run a patched model on one image and show what merged.

    Args:
        image: a PIL image or a uint8 array [H, W, 3], which is resized to the model's input and normalised as timm
            says; shown in its own proportions and resolution, at most 2048 pixels a side. Or a tensor [3, H, W] or
            [1, 3, H, W] as the model takes it.
        model: patched.
        predict: from the model and images [1, 3, h, w] to class logits [1, C, h, w], classes [1, h, w] of whole numbers
            or a map of values [1, h, w] or [1, 1, h, w]. None: no predictions are shown.
        palette: [C, 3] uint8, the colours of the classes. Default: colours that colour-blind people can tell apart.

    Returns:
        By title, in order: the image [H, W, 3] uint8; if CLAP ran, the similarity of the windows [H, W] float32, NaN
        where no window fits; after each merge the groups [H, W, 3] uint8, in their mean colours and outlined; with
        ``predict``, its result without merging, with it, and where they differ: [H, W, 3] of classes, [H, W] of values.

    Raises:
        ValueError: if the model is not patched, the tensor is not one image, the palette is too short or ``predict``
            returns what cannot be shown.
        TypeError: if ``image`` is none of the above.
    """
    handle = handle_of(model)
    trunk = handle._the_trunk()
    tensor, picture = prepare(image, trunk)
    parameter = next(model.parameters(), tensor)
    tensor = tensor.to(parameter.device, parameter.dtype)
    with torch.no_grad(), eval_mode(model):
        if predict is None:
            model(tensor)
        else:
            with measuring(handle, replace(handle.settings, **NOTHING, tokens=None)):
                before = predict(model, tensor)
            after = predict(model, tensor)
    past = handle._past()
    seen = tensor.shape[2], tensor.shape[3]
    canvas = Canvas(picture.shape[:2], seen, pixels_per_token(trunk, past.grid, seen))
    shown = {"image": picture}
    windows = handle.window_similarity
    if windows.numel():
        title = f"similarity in {'×'.join(map(str, past.settings.window))} windows"
        similarity = windows[0].float().cpu().numpy()
        shown[title] = paint_similarity(similarity, past.settings.window, past.grid, canvas)
    for layer, step in sorted(past.steps.items()):
        if step.plans and step.after is not None:
            groups = step.after.labels[0, past.num_prefix_tokens :].view(past.grid).cpu().numpy()
            title = f"{' and '.join(step.plans)} in layer {layer + 1}: {len(np.unique(groups))} of {groups.size} tokens"
            shown[title] = paint_groups(picture, groups, canvas)
    if predict is not None:
        shown |= predictions(before, after, picture, palette)
    return shown


def predictions(before: Any, after: Any, picture: Array, palette: Any) -> dict[str, Array]:
    """The panels of what was predicted without merging and with it, and of where the two differ."""
    one, other = (at_size(answer, picture.shape[:2]) for answer in (before, after))
    if one.dtype == np.float32:
        return {"prediction, unpatched": one, "prediction, merging": other, "difference": np.abs(one - other)}
    colours = distinct_colours(int(max(one.max(), other.max())) + 1) if palette is None else np.asarray(palette)
    return {
        "prediction, unpatched": paint_classes(one, colours),
        "prediction, merging": paint_classes(other, colours),
        f"where they differ: {(one != other).mean():.1%} of the pixels": paint_difference(picture, one, other),
    }


def at_size(answer: Any, size: tuple[int, int]) -> Array:
    """One image's answer at the size of its picture: classes [H, W] int64, or values [H, W] float32."""
    judge = judge_of(answer)
    if judge is CLASS_MAPS:
        classes = answer.reshape(1, 1, *answer.shape[-2:]).double()
        return interpolate(classes, size, mode="nearest")[0, 0].long().cpu().numpy()
    maps = answer.float().reshape(1, -1, *answer.shape[-2:])
    maps = interpolate(maps, size, mode="bilinear")[0]
    return (maps.argmax(0) if judge is AGREEMENT else maps[0]).cpu().numpy()


def prepare(image: Any, trunk: Any) -> tuple[Tensor, Array]:
    """The model's input [1, 3, h, w], and the picture [H, W, 3] uint8 that it is of."""
    import timm.data

    config = timm.data.resolve_model_data_config(trunk)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    if isinstance(image, np.ndarray):
        from PIL import Image

        image = Image.fromarray(image)
    if hasattr(image, "convert"):
        picture = image.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        wide, high = input_size(trunk, config)[::-1]
        pixels = torch.from_numpy(np.array(picture.resize((wide, high)))).permute(2, 0, 1)
        return ((pixels / 255 - mean) / std)[None], np.array(picture)
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a tensor, a PIL image or a uint8 array [H, W, 3]; got {type(image)}")
    tensor = image[None] if image.dim() == 3 else image
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(f"image is one image, [3, H, W] or [1, 3, H, W]; got {list(image.shape)}")
    pixels = (tensor[0].detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return tensor, pixels.round().byte().permute(1, 2, 0).numpy()


def input_size(trunk: Any, config: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the model's own input, which may not be that of its checkpoint."""
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None) or getattr(
        getattr(trunk, "config", None), "image_size", config["input_size"][1:]
    )
    high, wide = (size, size) if isinstance(size, int) else size
    return high, wide


def pixels_per_token(trunk: Any, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a token in an input of this size. If the model says nothing, the size over the grid."""
    embedding: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embedding, "feat_ratio"):
        high, wide = embedding.feat_ratio(as_scalar=False)
        return high, wide
    return -(-size[0] // grid[0]), -(-size[1] // grid[1])
