"""Print the scores of models side by side, and write them to a file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch

import algm_patch
from algm_patch.files import written_whole
from algm_patch.trunks import handle_of

from .bootstrap import agreement, class_agreement, miou_difference
from .dataset import Dataset
from .models import SegmentationModel
from .processes import process_count
from .records import plain_settings
from .score import Result


def report(
    model: SegmentationModel, dataset: Dataset, results: dict[str, Result], patched: SegmentationModel | None
) -> str:
    """Return the scores as a table: the summary, then the classes."""
    size = model.size if isinstance(model.size, int) else "{}x{}".format(*model.size)
    how = f"size {size}" if model.window is None else f"shorter side {size}, window {model.window} every {model.stride}"
    columns = list(results.values())
    width = max(map(len, (*dataset.classes, "GFLOPs an image"))) + 2

    def row(title: str, cells: Iterable[str]) -> str:
        return f"{title:{width}}" + "".join(f"{cell:>14}" for cell in cells)

    lines = [f"{dataset.name}: {len(dataset)} image{'s' * (len(dataset) > 1)}, {len(dataset.classes)} classes"]
    lines.append(f"{model.name}: {how}")
    if patched is not None:
        settings = plain_settings(handle_of(patched))
        lines.append(f"ALGM: {', '.join(f'{name}={value}' for name, value in settings.items())}")
    lines += [
        "",
        row("", [*results, *(["95 % interval"] if patched is not None else [])]),
        row("mIoU", (f"{100 * result.miou:.1f}" for result in columns)),
        row("pixel accuracy", (f"{100 * result.accuracy:.1f} %" for result in columns)),
        row("GFLOPs an image", (f"{result.gflops:.1f}" for result in columns)),
    ]
    if patched is not None:
        before, after = columns
        difference, pixels, classes = miou_difference(after, before), agreement(after), class_agreement(after)
        lines += [
            row("fewer GFLOPs", ("", f"{before.gflops / after.gflops:.2f} x")),
            row("mIoU difference", ("", f"{difference.value:+.1f}", difference.signed_interval)),
            row("pixels that agree", ("", f"{pixels.value:.1f} %", pixels.interval)),
            row("classes that agree", ("", f"{classes.value:.1f} %", classes.interval)),
            "",
            "Agreement is with the unpatched predictions: the share of the pixels, and the mean IoU over the classes.",
            "The interval is the bootstrap's, over images: what other images of the kind would give.",
        ]
    lines += ["", row("IoU", results)]
    for i, name in enumerate(dataset.classes):
        cells = ("absent" if result.iou[i].isnan() else f"{100 * result.iou[i]:.1f}" for result in columns)
        lines.append(row(name, cells))
    return "\n".join(lines)


def write_summary(
    options: argparse.Namespace, dataset: Dataset, results: dict[str, Result], patched: SegmentationModel | None
) -> None:
    """Write the scores, and what they are of, to the JSON file ``options.out``, whole or not at all."""
    summary = {
        "data": dataset.name,
        "images": len(dataset),
        "processes": process_count(),
        "classes": dataset.classes,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "algm": None if patched is None else plain_settings(handle_of(patched)),
        "results": {name: as_json(result) for name, result in results.items()},
        "intervals": {} if patched is None else intervals(*results.values()),
        "versions": {
            "algm_patch": algm_patch.__version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(options.out) as unfinished:
        unfinished.write_text(json.dumps(summary, indent=1))


def as_json(result: Result) -> dict[str, Any]:
    """Return a score as JSON has it."""
    return {
        "mIoU": result.miou,
        "accuracy": result.accuracy,
        "GFLOPs": result.gflops,
        "agreement": result.agreement,
        "classes": result.classes,
        "IoU": [None if value.isnan() else value.item() for value in result.iou],
        "confusion": result.confusion.tolist(),
    }


def intervals(before: Result, after: Result) -> dict[str, list[float]]:
    """Return the ends of the intervals of 95 %, in [0, 1]."""
    estimates = {
        "mIoU difference": miou_difference(after, before),
        "agreement": agreement(after),
        "classes": class_agreement(after),
    }
    return {name: [one.low / 100, one.high / 100] for name, one in estimates.items() if one.low == one.low}
