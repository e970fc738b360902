"""Print ablations as the supplement has them, the published rows to the right."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor

from algm_patch import Settings

from ..common.timing import device_name
from ..evaluation.dataset import Dataset
from ..evaluation.models import SegmentationModel
from ..evaluation.score import Result
from .ablation_tables import Row, Table
from .equal_merging import Merged


def heading(
    model: SegmentationModel,
    dataset: Dataset,
    images: Sequence[Tensor],
    base: Settings,
    merged: Merged,
    options: argparse.Namespace,
) -> str:
    """Return what was measured, and how much the reference merges."""
    removed = {"CLAP": merged.local}
    removed |= {f"GBM in layer {n}": count for n, count in zip(base.gbm_layers, merged.everywhere, strict=True)}
    shares = [f"{stage} {count / merged.tokens:.0%}" for stage, count in removed.items()]
    height, width = images[0].shape[2:]
    settings = dict(base)
    return "\n".join(
        [
            f"{model.name}, {height}x{width} pixels, {dataset.name}: {len(dataset)} images",
            f"{device_name(images[0].device)}, torch {torch.__version__}, timm {timm.__version__}; "
            f"Im/sec: {options.images} images, median of {options.rounds} rounds",
            f"Reference: {', '.join(f'{name} {value}' for name, value in settings.items() if value is not None)}",
            f"It removes, of the patch tokens of {len(images)} images: {', '.join(shares)}",
            "Published: Tab. 4, Segmenter with ViT-S trained with ALGM; Tab. 5, EVA not trained with it; both ADE20K",
        ]
    )


def printed(table: Table, results: Mapping[Settings | None, Result], speeds: Mapping[Settings, float]) -> str:
    """Return a table as text."""
    labels = (table.column, "Baseline", *(row.label for row in table.rows))
    width = 1 + max(map(len, labels))
    columns = f"{'mIoU (%) ↑':>12}{'Im/sec ↑':>10}{'GFLOPs ↓':>10}"
    head = f"{table.column:{width}}{columns}{'agree (%)':>11}{'τ CLAP':>9}{'τ GBM':>10}"
    lines = [f"{table.name}. {table.caption}", head]
    if table.baseline is not None:
        lines[1] += f"   | published{'mIoU (%) ↑':>12}{'Im/sec ↑':>15}{'GFLOPs ↓':>10}"
    baseline = Row("Baseline", Settings(), table.baseline)
    for row in (baseline, *table.rows):
        result = results[None if row is baseline else row.settings]
        speed = 1.0 if row is baseline else speeds[row.settings]
        line = f"{row.label:{width}}{100 * result.miou:12.1f}{speed:8.2f} ×{result.gflops:10.1f}"
        if row is not baseline:
            taus = f"{shown(row.settings.tau):>9}{shown(row.settings.gbm_tau):>10}"
            line += f"{100 * (result.agreement or 0):11.1f}{taus}"
        if row.published is not None and table.baseline is not None:
            theirs, ratio = row.published, row.published.speed / table.baseline.speed
            line = f"{line:{len(head)}}   | {theirs.label:9}{theirs.miou:12.1f}{theirs.speed:6g} ({ratio:.2f} ×)"
            line += f"{theirs.gflops:10.1f}"
        lines.append(line)
    if table.equal:
        lines.append("CLAP and GBM merge as many tokens in each row: thresholds of GBM, too, are of all images.")
    return "\n".join(lines)


def shown(tau: Any) -> str:
    """Return one threshold or several, or the name of a rule."""
    taus = tau if isinstance(tau, tuple) else (tau,)
    return " ".join(f"{one:.4f}" if isinstance(one, float) else one for one in taus)
