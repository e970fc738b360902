"""One image as a patched model sees it: its forward pass, and predictions without merging and with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.eval_mode import eval_mode
from ..core.token_map import TokenMap
from ..handle import Algm
from ..images.prepare import pixels_per_token, prepare
from ..patching.forward_pass import ForwardPass
from ..patching.naming import class_name
from ..trunks import handle_of
from ..tuning.judges import COSINE, judge_of, token_shapes
from ..tuning.opening import MERGE_NOTHING
from .groups import paint_groups
from .paint import Array, Canvas

Predict = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """Hold what a patched model did with one image.

    Attributes:
        picture: the image [H, W, 3] uint8.
        canvas: where the tokens are on the picture.
        forward_pass: the model's forward pass on the image.
        answers: the prediction without merging and the one with it; None if none was asked for.
    """

    picture: Array
    canvas: Canvas
    forward_pass: ForwardPass
    answers: tuple[Any, Any] | None

    def groups(self, token_map: TokenMap) -> tuple[Array, str]:
        """Return the groups of a token map, painted [H, W, 3], and their number in words."""
        high, wide = self.forward_pass.grid
        groups = token_map.labels[0, -high * wide :].view(high, wide).cpu().numpy()
        count = len(np.unique(groups))
        words = f"{count} of {groups.size} patches" if count < groups.size else "nothing merged"
        return paint_groups(self.picture, groups, self.canvas), words

    @property
    def last_groups(self) -> tuple[Array, str]:
        """The groups that the last layer leaves, as in ``groups``."""
        return self.groups(self.forward_pass.token_map)


@torch.no_grad()
def look(model: nn.Module, image: Any, predict: Predict | None = None) -> View:
    """Run a patched model on one image; with ``predict`` first without merging, then with it.

    Args:
        image, predict: as for ``algm_patch.viz.panels``.

    Raises:
        ValueError, TypeError: as ``algm_patch.viz.panels``.
    """
    handle = handle_of(model)
    trunk = handle.runtime.trunk
    tensor, picture = prepare(model, image, trunk)
    parameter = next(model.parameters(), tensor)
    tensor = tensor.to(parameter.device, parameter.dtype)
    answers = None
    with eval_mode(model):
        if predict is None:
            run_on_one_grid(handle, partial(model, tensor), f"the forward of {class_name(model)}")
        else:
            answer = partial(predict, model, tensor)
            with handle.using(**MERGE_NOTHING):
                before = run_on_one_grid(handle, answer, "predict")
            answers = before, run_on_one_grid(handle, answer, "predict")
    forward_pass = handle.last_pass
    if answers is not None:
        check_maps(answers, token_shapes(forward_pass.grid, forward_pass.num_prefix_tokens, forward_pass.width))
    input_size = tensor.shape[2], tensor.shape[3]
    token_size = pixels_per_token(trunk, forward_pass.grid, input_size)
    return View(picture, Canvas(picture.shape[:2], input_size, token_size), forward_pass, answers)


def run_on_one_grid(handle: Algm, answer: Callable[[], Any], name: str) -> Any:
    """Return what ``answer()`` returns; afterwards ``handle.last_pass`` is its forward pass.

    Args:
        name: of what runs the model, for errors.

    Raises:
        ValueError: if the ViT did not run, or took several images, or images that differ (windows, flips, scales): no
            single forward pass can be shown then.
    """
    inputs: list[Tensor] = []
    hook = handle.runtime.vit.projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    handle.runtime.forget()
    try:
        found = answer()
    finally:
        hook.remove()
    vit = handle.runtime.model_name
    if not inputs:
        raise ValueError(
            f"{name} did not run the ViT ({vit}) on the image, so there is nothing of it to show. Pass "
            "predict=function(model, images) that runs the patched model on the images it is given"
        )
    batch = max(map(len, inputs))
    if batch > 1 or any(other.shape != inputs[0].shape or not torch.equal(other, inputs[0]) for other in inputs[1:]):
        raise ValueError(
            f"{name} ran the ViT ({vit}) {len(inputs)} times, on up to {batch} images at once, which are not "
            "all the same (windows, flips, scales?), so there is no one grid of tokens to show. Pass "
            "predict=function(model, images) that runs the patched model on the whole image"
        )
    return found


def check_maps(answers: tuple[Any, Any], tokens: set[tuple[int, ...]]) -> None:
    """Raise TypeError or ValueError if an answer cannot be shown as a map.

    Args:
        tokens: shapes of tokens, as ``algm_patch.tuning.judges.token_shapes`` returns them.
    """
    for answer in answers:
        if judge_of(answer, tokens) is COSINE:
            raise ValueError(
                f"predict returned tokens {list(answer.shape)}, which are no map. Pass predict=function(model, images) "
                "that returns logits [B, classes, h, w], classes [B, h, w] or values [B, 1, h, w]"
            )
