"""What merges where: an image's window similarities and the groups that its tokens form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .handle import eval_mode, handle_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


def visualize(image: Any, model: nn.Module) -> Figure:
    """The panels of :func:`panels` as one figure (as the supplement's Fig. 4).

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError, TypeError: as :func:`panels`.
    """
    return draw(panels(image, model))


def panels(image: Any, model: nn.Module) -> dict[str, Array]:
    """Run a patched model on one image and show what merged.

    Args:
        image: a tensor [3, H, W] or [1, 3, H, W] as the model takes it; or a PIL image or a uint8 array [H, W, 3],
            which then goes through timm's transform for the model.
        model: patched.

    Returns:
        By title, in order, at the size of the model's input: the image [H, W, 3] uint8; if CLAP ran, the similarity
        of the windows [H, W] float32, NaN where no window fits; after each merge the groups [H, W, 3] uint8, in
        their mean colours and outlined.

    Raises:
        ValueError: if the model is not patched or the tensor is not one image.
        TypeError: if ``image`` is none of the above.
    """
    handle = handle_of(model)
    trunk = handle._the_trunk()
    tensor, picture = prepare(image, trunk)
    parameter = next(model.parameters(), tensor)
    with torch.no_grad(), eval_mode(model):
        model(tensor.to(parameter.device, parameter.dtype))
    past = handle._past()
    side = pixels_per_token(trunk, past.grid, picture)
    shown = {"image": picture}
    windows = handle.window_similarity
    if windows.numel():
        shown[f"similarity in {'×'.join(map(str, past.settings.window))} windows"] = spread_windows(
            windows[0].float().cpu().numpy(), past.settings.window, past.grid, side, picture.shape[:2]
        )
    for layer, step in sorted(past.steps.items()):
        if step.plans and step.after is not None:
            groups = step.after.labels[0, past.num_prefix_tokens :].view(past.grid).cpu().numpy()
            title = f"{' and '.join(step.plans)} in layer {layer + 1}: {len(np.unique(groups))} of {groups.size} tokens"
            shown[title] = paint_groups(picture, groups, side)
    return shown


def prepare(image: Any, trunk: nn.Module) -> tuple[Tensor, Array]:
    """The model's input [1, 3, H, W] and what it looks like, [H, W, 3] uint8."""
    import timm.data

    config = timm.data.resolve_model_data_config(trunk)
    size = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if size is not None:  # the model's own, which may not be that of its checkpoint
        config["input_size"] = (3, *size)
    if isinstance(image, np.ndarray):
        from PIL import Image

        image = Image.fromarray(image)
    if hasattr(image, "convert"):
        image = timm.data.create_transform(**config, is_training=False)(image.convert("RGB"))
    if not isinstance(image, Tensor):
        raise TypeError(f"image is a tensor, a PIL image or a uint8 array [H, W, 3]; got {type(image)}")
    tensor = image[None] if image.dim() == 3 else image
    if tensor.dim() != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(f"image is one image, [3, H, W] or [1, 3, H, W]; got {list(image.shape)}")
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    picture = (tensor[0].detach().float().cpu() * std + mean).clamp(0, 1) * 255
    return tensor, picture.round().byte().permute(1, 2, 0).numpy()


def pixels_per_token(trunk: Any, grid: tuple[int, int], picture: Array) -> tuple[int, int]:
    """Height and width of a token. If the model says nothing, the picture's over the grid's."""
    embedding: Any = getattr(trunk, "patch_embed", None)
    if hasattr(embedding, "feat_ratio"):
        high, wide = embedding.feat_ratio(as_scalar=False)
        return high, wide
    return -(-picture.shape[0] // grid[0]), -(-picture.shape[1] // grid[1])


def spread(tokens: Array, side: tuple[int, int], size: tuple[int, ...]) -> Array:
    """A value per token [H, W] to a value per pixel, for tokens of this side and an image of this size."""
    rows, columns = (np.arange(pixels) // token for pixels, token in zip(size, side, strict=True))
    return tokens[rows[:, None], columns]


def spread_windows(
    windows: Array, window: tuple[int, int], grid: tuple[int, int], side: tuple[int, int], size: tuple[int, ...]
) -> Array:
    """A value per window to a value per pixel; NaN for tokens that are in no window."""
    tokens = np.full(grid, np.nan, windows.dtype)
    inside = windows.repeat(window[0], 0).repeat(window[1], 1)
    tokens[: inside.shape[0], : inside.shape[1]] = inside
    return spread(tokens, side, size)


def paint_groups(picture: Array, groups: Array, side: tuple[int, int]) -> Array:
    """Each group in its mean colour, with a thin line around those of more than one token.

    Args:
        picture: [H, W, 3] uint8.
        groups: one integer per token.
        side: height and width of a token in pixels.
    """
    _, numbers, tokens = np.unique(groups, return_inverse=True, return_counts=True)
    labels = spread(numbers.reshape(groups.shape), side, picture.shape[:2])
    pixels = np.maximum(np.bincount(labels.ravel(), minlength=len(tokens)), 1)
    sums = [np.bincount(labels.ravel(), picture[..., i].ravel(), len(tokens)) for i in range(3)]
    painted = (np.stack(sums, -1) / pixels[:, None]).round().astype(np.uint8)[labels]
    merged = tokens[labels] > 1
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    edge[1:] |= (labels[1:] != labels[:-1]) & (merged[1:] | merged[:-1])
    # Grey lines show on dark and on light groups alike.
    painted[edge] = np.where(painted[edge].mean(-1, keepdims=True) > 127, painted[edge] // 2, 128 + painted[edge] // 2)
    return painted


def draw(panels: Mapping[str, Array], columns: int = 4, width: float = 16.0) -> Figure:
    """Panels in a grid: colour images as they are, [H, W] floats as a map with its scale.

    Args:
        panels: by title.
        columns: at most so many in a row.
        width: of the figure, in inches.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Drawing needs matplotlib: pip install 'algm_patch[viz]'") from error
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height, across = next(iter(panels.values())).shape[:2]
    side = width / columns
    figure = Figure(figsize=(width, rows * (side * height / across + 0.4)), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, panel) in zip(axes, panels.items(), strict=False):
        axis.set_title(title)
        drawn = axis.imshow(panel, interpolation="nearest", cmap="viridis")
        if panel.ndim == 2:
            figure.colorbar(drawn, ax=axis, location="right", fraction=0.05, pad=0.02)
    return figure
