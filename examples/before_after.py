"""Draw before and after side by side: what the model sees and answers without merging and with it, and at what cost.

    python examples/before_after.py [IMAGE] [--tau TAU] [--out FILE]

Runs DINOv2 ViT-S/14 with a saliency head, offline. The picture has twice the pixels that a page shows, for screens of
high resolution.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dinov2_saliency
import numpy as np
import torch
from commands import run, setting
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from pictures import open_image, to_input
from quickstart import saliency

from algm_patch import apply_algm
from algm_patch.viz import panels

SIDE, GAP, MARGIN = 2.6, 0.1, 0.2  # of panels, in inches
HEAD, FOOT = 0.75, 1.15  # above the panels and below them
MIDDLE = 0.5  # between before and after
DPI = 180
GREY, BLUE = "0.55", "#0072B2"


@dataclass(frozen=True)
class Half:
    """Hold one half of the picture.

    Attributes:
        title: heading.
        pictures: what the model sees, and what it answers, by title.
        tokens: how many patch tokens the layers have, in words.
        gflops: of the ViT.
        colour: of the bar of its cost.
        note: what stands beside the bar.
    """

    title: str
    pictures: dict[str, NDArray[Any]]
    tokens: str
    gflops: float
    colour: str
    note: str = ""


def main(arguments: list[str] | None = None) -> Path:
    """Run the example; return the path of the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="any image file (default: scikit-image's astronaut)")
    parser.add_argument("--tau", type=setting("tau"), default="auto", help="threshold: a number, auto or paper")
    parser.add_argument(
        "--out", type=Path, default=Path("out/before_after.png"), help="the picture (default: out/before_after.png)"
    )
    options = parser.parse_args(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(*halves(options.image, options.tau)).savefig(options.out, dpi=DPI)
    print(f"picture: {options.out}")
    return options.out


def halves(path: Path | None, tau: float | str) -> tuple[Half, Half]:
    """Return what stands on the picture, before and after."""
    model = apply_algm(dinov2_saliency.load(), tau=tau)
    with torch.inference_mode():
        shown = panels(model, to_input(open_image(path)), saliency)
    picture, *_, groups, before, after, _ = shown.values()
    correlation = [*shown][-1].partition(": ")[2]
    algm = model.algm
    whole, prefix = algm.token_map.labels.shape[1], algm.last_pass.num_prefix_tokens
    left = {layer: algm.tokens_per_layer[layer - 1] - prefix for layer in (algm.clap_layer, *algm.gbm_layers)}
    counts = ", ".join(f"{count} after layer {layer}" for layer, count in left.items())
    saved = 1 - algm.gflops / algm.unpatched_gflops
    return (
        Half(
            "before",
            {"image": picture, "prediction": before},
            f"{whole - prefix} patch tokens in all layers",
            algm.unpatched_gflops,
            GREY,
        ),
        Half(
            "after apply_algm(model)" if tau == "auto" else f"after apply_algm(model, tau={tau})",
            {"outlined: one token each": groups, "prediction": after},
            f"{whole - prefix} patch tokens, {counts}",
            algm.gflops,
            BLUE,
            f"{saved:.0%} fewer; nothing trained; {correlation}",
        ),
    )


def draw(*both: Half) -> Figure:
    """Return the picture: of each half its panels, tokens and cost."""
    answers = [each.pictures["prediction"] for each in both]
    high, wide = answers[0].shape
    height_of_panel = SIDE * high / wide
    half = 2 * SIDE + GAP
    width, height = 2 * MARGIN + 2 * half + MIDDLE, HEAD + height_of_panel + FOOT
    figure = Figure(figsize=(width, height))

    def add(left: float, bottom: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    largest = max(each.gflops for each in both)
    least, most = min(map(np.min, answers)), max(map(np.max, answers))
    for number, each in enumerate(both):
        left = MARGIN + number * (half + MIDDLE)
        for place, (name, panel) in enumerate(each.pictures.items()):
            axes = add(left + place * (SIDE + GAP), FOOT, SIDE, height_of_panel)
            axes.set_axis_off()
            axes.set_title(name, size=11, loc="left", color="0.3", pad=4)
            axes.imshow(panel, cmap="viridis", vmin=least, vmax=most)
        figure.text(left / width, 1 - 0.16 / height, each.title, size=15, weight="bold", va="top")
        figure.text(left / width, (FOOT - 0.12) / height, each.tokens, size=12, va="top")
        bar = add(left, 0.42, half * each.gflops / largest, 0.3)
        bar.set_axis_off()
        bar.add_patch(Rectangle((0, 0), 1, 1, color=each.colour))
        bar.text(0.02, 0.45, f"{each.gflops:.1f} GFLOPs", size=12, color="white", va="center", weight="bold")
        figure.text(left / width, 0.3 / height, each.note, size=12, va="top", color=each.colour)
    return figure


if __name__ == "__main__":
    run(main)
