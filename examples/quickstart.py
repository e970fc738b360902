"""One line makes a real model faster; a real image shows it.

    python examples/quickstart.py [IMAGE] [--tau TAU] [--model NAME] [--out DIR]

Runs DINOv2 ViT-S/14 with a saliency head, offline, before and after ``apply_algm``: prints the tokens that each
layer keeps, GFLOPs of the ViT, milliseconds and how closely the prediction agrees, and draws it all in one PNG.
With --model, any timm ViT with weights from the hub instead; what is compared then is its patch features.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dinov2_saliency
import timm
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

from algm_patch import apply_algm
from algm_patch.viz import panels
from algm_patch.viz.figure import draw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, PATCH = 518, 14
Predict = Callable[[nn.Module, Tensor], Tensor]
Compare = Callable[[Tensor, Tensor], tuple[str, dict[str, NDArray[Any]]]]


def main(arguments: list[str] | None = None) -> Path:
    options = parse(arguments)
    model, plain, image, predict, compare = prepared(options)
    with torch.inference_mode():
        before, after = predict(plain, image), predict(model, image)
        gflops = model.algm.unpatched_gflops, model.algm.gflops
        ms = milliseconds([lambda: predict(plain, image), lambda: predict(model, image)])
    agreement, maps = compare(before, after)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "quickstart.png"
    draw({**panels(model, image), **maps}, columns=4).savefig(path, dpi=90, bbox_inches="tight")

    print(model.algm)
    print(f"\n{'':8}{'before':>8}{'after':>8}")
    print(f"{'GFLOPs':8}{gflops[0]:8.1f}{gflops[1]:8.1f}   {gflops[0] / gflops[1]:.2f} x fewer, of the ViT")
    print(f"{'ms':8}{ms[0]:8.0f}{ms[1]:8.0f}   {ms[0] / ms[1]:.2f} x faster")
    print(f"\n{agreement}\npicture: {path}")
    return path


def prepared(options: argparse.Namespace) -> tuple[Any, nn.Module, Tensor, Predict, Compare]:
    """The model with ALGM and without, its input, what it predicts and how two predictions compare."""
    picture = open_image(options.image)
    if options.model:
        model, image, predict, compare = *load_timm(options.model, picture), features, compare_features
    else:
        model, image, predict, compare = dinov2_saliency.load(), to_input(picture), saliency, compare_saliency
    plain = copy.deepcopy(model)

    apply_algm(model, clap_layer=1, gbm_layers=[5], tau=options.tau)

    return model, plain, image, predict, compare


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="any image file (default: scikit-image's astronaut)")
    parser.add_argument(
        "--tau", type=number_or_rule, default="auto", help='similarity to merge from, "auto" or "paper"'
    )
    parser.add_argument("--model", help="a timm ViT with hub weights, instead of DINOv2 with its head")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    return parser.parse_args(arguments)


def number_or_rule(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


# -- images and models


def open_image(path: Path | None) -> Image.Image:
    if path is None:
        from skimage.data import astronaut

        return Image.fromarray(astronaut())
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except OSError as error:
        raise SystemExit(f"{path} cannot be read as an image: {error}") from error


def to_input(picture: Image.Image) -> Tensor:
    """[1, 3, H, W], about 518 x 518 pixels in the picture's own proportions, sides multiples of 14."""
    scale = SIDE / (picture.width * picture.height) ** 0.5
    sides = [max(PATCH, round(side * scale / PATCH) * PATCH) for side in (picture.height, picture.width)]
    return normalise(picture, sides)


def normalise(picture: Image.Image, sides: Sequence[int]) -> Tensor:
    """[1, 3, height, width] at these sides, with ImageNet's mean and deviation."""
    pixels = transforms.to_dtype(transforms.pil_to_tensor(picture), torch.float32, scale=True)
    return transforms.normalize(transforms.resize(pixels, list(sides), antialias=True), MEAN, STD)[None]


def load_timm(name: str, picture: Image.Image) -> tuple[nn.Module, Tensor]:
    model = timm.create_model(name, pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model, transform(picture)[None]


# -- predictions and how they agree


def saliency(model: nn.Module, image: Tensor) -> Tensor:
    return model(image)


def compare_saliency(before: Tensor, after: Tensor) -> tuple[str, dict[str, NDArray[Any]]]:
    correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
    same = ((before > 0.5) == (after > 0.5)).float().mean()
    maps = {"saliency before": before, "saliency after": after, "difference": (after - before).abs()}
    return (
        f"saliency agrees: correlation {correlation:.4f}, {same:.1%} of the pixels on the same side of 0.5",
        {title: values[0, 0].numpy() for title, values in maps.items()},
    )


def features(model: Any, image: Tensor) -> Tensor:
    """[1, D, h, w] normalised patch features of the last layer."""
    return model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[0]


def compare_features(before: Tensor, after: Tensor) -> tuple[str, dict[str, NDArray[Any]]]:
    cosine = nn.functional.cosine_similarity(before, after)[0]
    tokens = before[0].flatten(1).T
    *_, directions = torch.pca_lowrank(tokens, q=3)
    centre, spread = tokens.mean(0), 3 * (tokens - tokens.mean(0)).matmul(directions).std(0)

    def colours(values: Tensor) -> NDArray[Any]:
        projected = (values[0].permute(1, 2, 0) - centre) @ directions / spread
        return ((projected.clamp(-1, 1) + 1) * 127.5).byte().numpy()

    maps = {"features before (3 components)": colours(before), "features after": colours(after)}
    return f"patch features agree: mean cosine {cosine.mean():.4f}", {**maps, "1 - cosine": (1 - cosine).numpy()}


# -- measuring


def milliseconds(runs: list[Callable[[], Any]], rounds: int = 9) -> list[float]:
    """The median of each, taken in turns so that a noisy machine disturbs all alike."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, spent in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            spent.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(spent) for spent in times]


if __name__ == "__main__":
    main()
