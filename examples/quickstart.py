"""One line makes a real model faster; a real image shows it.

    python examples/quickstart.py [IMAGE] [--tau TAU] [--model NAME] [--out DIR]

Runs DINOv2 ViT-S/14 with a saliency head, offline, before and after ``apply_algm``. Prints the tokens that each layer
leaves, the GFLOPs of the ViT, milliseconds, and how closely the prediction agrees, and draws it all in one PNG. With
--model, any timm ViT with weights from the hub instead; then its patch features are compared.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: on a busy machine they alone take a minute
    print("loading torch and timm ...", flush=True)

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dinov2_saliency
import timm
import torch
from commands import load_timm, run, setting, step, times
from pictures import open_image, to_input
from PIL import Image
from stopwatch import milliseconds
from torch import Tensor, nn

from algm_patch import apply_algm, visualize

Predict = Callable[[nn.Module, Tensor], Tensor]
Compare = Callable[[Tensor, Tensor], str]


def main(arguments: list[str] | None = None) -> Path:
    """Run the example; return the path of the picture."""
    options = parse(arguments)
    model, plain, image, predict, compare = prepared(options)
    with torch.inference_mode():
        step("running it without merging and with it")
        before, after = predict(plain, image), predict(model, image)
        gflops = model.algm.unpatched_gflops, model.algm.gflops
        step("measuring how long it takes, in turns")
        ms = milliseconds([lambda: predict(plain, image), lambda: predict(model, image)])
    step("drawing")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "quickstart.png"
    drawn = None if options.model else predict  # features are no map to look at
    visualize(model, image, drawn).savefig(path, dpi=180)

    print(f"\n{model.algm}\n\n{'':8}{'before':>8}{'after':>8}")
    print(f"{'GFLOPs':8}{gflops[0]:8.1f}{gflops[1]:8.1f}   {times(*gflops, 'fewer', 'more')}, of the ViT")
    print(f"{'ms':8}{ms[0]:8.0f}{ms[1]:8.0f}   {times(*ms, 'faster', 'slower')}")
    print(f"\n{compare(before, after)}\npicture: {path}")
    return path


def prepared(options: argparse.Namespace) -> tuple[Any, nn.Module, Tensor, Predict, Compare]:
    """Return the model with ALGM, the model without, an input, what predicts, and what compares two predictions."""
    picture = open_image(options.image)
    if options.model:
        model, image, predict, compare = *from_hub(options.model, picture), features, compare_features
    else:
        step("loading DINOv2 ViT-S/14 with its saliency head")
        model, image, predict, compare = dinov2_saliency.load(), to_input(picture), saliency, compare_saliency
    plain = copy.deepcopy(model)

    apply_algm(model, clap_layer=1, gbm_layers=[5], tau=options.tau)

    return model, plain, image, predict, compare


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="any image file (default: scikit-image's astronaut)")
    parser.add_argument(
        "--tau",
        type=setting("tau"),
        default="auto",
        help="threshold: a number, auto or paper (default: auto)",
    )
    parser.add_argument("--model", help="a timm ViT with hub weights, instead of DINOv2 with its head")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    return parser.parse_args(arguments)


def from_hub(name: str, picture: Image.Image) -> tuple[nn.Module, Tensor]:
    """Return a timm model with weights from the hub, and its input [1, 3, H, W]."""
    model = load_timm(name)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model, transform(picture)[None]


# -- predictions and how they agree


def saliency(model: nn.Module, image: Tensor) -> Tensor:
    """Return the saliency [1, 1, H, W] in [0, 1]."""
    return model(image)


def compare_saliency(before: Tensor, after: Tensor) -> str:
    """Tell how closely two saliency maps agree."""
    correlation = torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]
    same = ((before > 0.5) == (after > 0.5)).float().mean()
    return f"saliency agrees: correlation {correlation:.4f}, {same:.1%} of the pixels on the same side of 0.5"


def features(model: Any, image: Tensor) -> Tensor:
    """Return the normalised patch features [1, D, h, w] of the last layer."""
    return model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[0]


def compare_features(before: Tensor, after: Tensor) -> str:
    """Tell how closely two maps of features [1, D, h, w] agree."""
    cosine = nn.functional.cosine_similarity(before, after).mean()
    return f"patch features agree: mean cosine {cosine:.4f}"


if __name__ == "__main__":
    run(main)
