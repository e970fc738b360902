"""Run and tune the app's model on an image that a visitor chose."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skimage
import torch
from numpy.typing import NDArray
from pictures import to_input
from stopwatch import milliseconds
from torch import Tensor, nn
from uploads import read

from algm_patch import apply_algm, remove_algm, tune
from algm_patch.tuning.judges import correlation
from algm_patch.viz import panels

ROUNDS = 3  # of timing
BUDGET = 45  # seconds to tune
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


@dataclass(frozen=True)
class Run:
    """Hold what a visitor sees of an image under some settings; of two numbers the first is the unpatched model's.

    Attributes:
        pictures: by title, as ``algm_patch.viz.panels`` returns them.
        patches: patch tokens after the last layer.
        gflops: of the ViT.
        ms: milliseconds of a forward pass, measured.
        agreement: correlation of the prediction with the unpatched model's.
    """

    pictures: dict[str, NDArray[Any]]
    patches: tuple[int, int]
    gflops: tuple[float, float]
    ms: tuple[float, float]
    agreement: float


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the saliency [B, 1, H, W]."""
    return model(images)


def run(model: nn.Module, path: str, settings: dict[str, Any]) -> Run:
    """Run an unpatched model on an image, without merging and with it; leave the model unpatched.

    Raises:
        ValueError: if the image cannot be used, or the settings do not go together.
    """
    image = to_input(read(path))
    plain = copy.deepcopy(model)
    apply_algm(model, **settings)
    try:
        shown = panels(model, image, predict)
        algm = model.algm
        whole = algm.last_pass.grid[0] * algm.last_pass.grid[1]
        left = algm.tokens_per_layer[-1] - algm.last_pass.num_prefix_tokens
        gflops = algm.unpatched_gflops, algm.gflops
        with torch.inference_mode():
            before, after = plain(image), model(image)
            ms = milliseconds([lambda: plain(image), lambda: model(image)], ROUNDS)
    finally:
        remove_algm(model)
    return Run(shown, (whole, left), gflops, (ms[0], ms[1]), correlation(before, after))


def find(model: nn.Module, path: str | None, keep: float) -> dict[str, Any]:
    """Return the settings that tune finds on the visitor's image and some photographs; leave the model unpatched.

    Raises:
        ValueError: if the image cannot be used.
        NothingFoundError: if nothing that is tried keeps enough and costs less than the unpatched model.
    """
    chosen = [] if path in (None, *photographs()) else [path]
    images = [to_input(read(each)) for each in [*photographs(), *chosen]]  # as they are shown
    settings = tune(model, images, keep, predict=predict, budget=f"{BUDGET}s")
    remove_algm(model)
    return dict(**settings)


def photographs() -> list[str]:
    """Return the paths of scikit-image's photographs that are offered as examples."""
    folder = Path(skimage.__file__).parent / "data"
    return [str(folder / name) for name in PHOTOGRAPHS]
