"""Judge results by what must hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..common.stopwatch import MACHINERY
from .methods import FIXED, PLAIN, THRESHOLDS
from .tables import GRAPHS, Row

LEAST_KEPT = {"ViT-L": 0.95, "ViT-B": 0.95, "ViT-S": 0.9, "ViT-Ti": 0.8}
LITTLE_MACHINERY = ("ViT-L", "ViT-B", "ViT-S")
GAINS_ALONE = ("ViT-B", "ViT-L", "DINOv2-L")


def bars(results: Mapping[str, Any]) -> list[Row]:
    """Return for each bar what was found (an error, where it failed), and a verdict."""
    speed, split = results["speed"], [row for row in results["split"] if row["batch"] == 32]
    at_32 = [row for row in speed if row["batch"] == 32 and row["method"] in (FIXED, THRESHOLDS)]
    alone = [row for row in speed if (row["batch"], row["mode"], row["method"]) == (1, GRAPHS, FIXED)]
    faster = {(where(row), row["method"]): row["faster"] for row in speed if "faster" in row}
    plain = {place: gain for (place, method), gain in faster.items() if method == PLAIN and (place, FIXED) in faster}
    waits = results["synchronisations"]
    return [
        *(
            bar(
                f"speed-up kept at batch 32, {name}: at least {least}",
                {f"{row['mode']}, {row['method']}": value(row, "kept") for row in at_32 if row["model"] == name},
                least=least,
            )
            for name, least in LEAST_KEPT.items()
        ),
        *(
            bar(
                f"share of matching, merging, unmerging and what is around them at batch 32, {name}: at most 0.04",
                {row["method"]: sum(row[part] for part in MACHINERY) for row in split if row["model"] == name},
                most=0.04,
            )
            for name in LITTLE_MACHINERY
        ),
        *(
            bar(
                f"times faster at batch 1 with CUDA graphs, {name}: at least 1.05",
                {row["method"]: value(row, "faster") for row in alone if row["model"] == name},
                least=1.05,
            )
            for name in GAINS_ALONE
        ),
        bar(
            "cost of proportional attention in the patched forward pass: at most 0.05",
            {place: gain / faster[place, FIXED] - 1 for place, gain in plain.items()},
            most=0.05,
        ),
        bar(
            "host synchronisations with fixed counts: none",
            {where(row): row["synchronisations"] for row in waits if row["method"] == FIXED},
            most=0,
        ),
        bar(
            "host synchronisations of two merges by thresholds: one each",
            {where(row): row["synchronisations"] for row in waits if row["method"] == THRESHOLDS},
            most=2,
        ),
        bar(
            "with deterministic algorithms, on channels-last and non-contiguous input, output moves by: at most 0.1",
            {f"{row['model']}, {row['condition']}": value(row, "distance") for row in results["conditions"]},
            most=0.1,
        ),
        bar(
            "error against float64 / the unpatched model's: at most 2",
            {
                f"{row['model']}, {row['dtype']}": row.get("error") or row["patched"] / row["unpatched"]
                for row in results["correctness"]
            },
            most=2,
        ),
    ]


def where(row: Row) -> str:
    """Return the model, mode and batch of a row in words."""
    return ", ".join([*(row[key] for key in ("model", "mode") if key in row), f"batch {row['batch']}"])


def value(row: Row, name: str) -> Any:
    """Return a value of a row, or why there is none."""
    return row[name] if name in row else row.get("error", "nothing to compare with")


def bar(text: str, found: dict[str, Any], least: float = -math.inf, most: float = math.inf) -> Row:
    """Return a bar with its verdict: all numbers must be within the limits."""
    reached = all(isinstance(number, (int, float)) and least <= number <= most for number in found.values())
    verdict = "not measured" if not found else "reached" if reached else "not reached"
    return {"bar": text, "found": found, "verdict": verdict}
