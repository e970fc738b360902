"""Print what merging costs as the tokens grow, write it as a CSV, and judge it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from algm_patch.core.nearest import CHUNK_BYTES

from .stages import FORWARD, MATCHING, STAGES, LeftOut, Measured

BAR = 0.05  # share of the forward pass that matching must not reach
COLUMNS = (
    ("tokens", 7),
    ("batch", 6),
    ("forward, ms", 14),
    ("CLAP match", 14),
    ("merge", 7),
    ("GBM match", 11),
    ("merge", 7),
    ("unmerge", 9),
    ("matching", 10),
    ("all", 7),
    ("forward", 13),
    ("matching", 10),
)
HEADER = f"{'% of the forward pass':>49}{'bytes a token':>66}\n" + "".join(
    f"{name:>{width}}" for name, width in COLUMNS
)


def table_row(result: Measured | LeftOut) -> str:
    """Return a row of the table."""
    cells = [str(result.tokens), str(result.batch)]
    if isinstance(result, Measured):
        forward = result.costs[FORWARD]
        cells.append(f"{1e3 * forward.seconds:.1f}{' ' if result.whole else '*'}")
        cells += [f"{100 * result.share(stages):.2f}" for stages in (*([stage] for stage in STAGES), MATCHING, STAGES)]
        cells += [f"{memory:.0f}" for memory in (forward.memory, matching_bytes_per_token(result))]
    row = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False))
    return row if isinstance(result, Measured) else f"{row}    left out: would take about {result.seconds:.0f} s"


def matching_bytes_per_token(result: Measured) -> float:
    """Return the bytes at the peak of matching, for each token."""
    return result.matching_memory / result.batch / result.tokens


def write_csv(path: Path, measured: Sequence[Measured], left_out: Sequence[LeftOut]) -> None:
    """Write a row for each stage, and for each combination that was left out one without numbers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tokens", "batch", "stage", "milliseconds", "share", "bytes_per_token", "forward_measured_on"])
        for result in measured:
            source = "network" if result.whole else "one block"
            for stage, cost in result.costs.items():
                numbers = f"{1e3 * cost.seconds:.4g}", f"{cost.share:.4g}", f"{cost.memory:.0f}"
                writer.writerow([result.tokens, result.batch, stage, *numbers, source])
        for missing in left_out:
            writer.writerow([missing.tokens, missing.batch, "left out", "", "", "", ""])


def verdicts(measured: Sequence[Measured]) -> list[str]:
    """Return how far was measured, and whether matching is fast and its memory linear in the tokens."""
    slowest = max(measured, key=lambda result: result.share(MATCHING))
    share = slowest.share(MATCHING)
    largest = max(measured, key=lambda result: result.matching_memory / allowed_memory(result, measured))
    memory = largest.matching_memory / allowed_memory(largest, measured)
    return [
        f"up to {max(result.tokens for result in measured)} tokens",
        f"matching, CLAP and GBM: at most {share:.2%} of the unpatched forward pass ({where(slowest)}); "
        f"less than {BAR:.0%}: {'held' if share < BAR else 'missed'}",
        f"memory of matching: at most {memory:.2f} × (the bytes a token at the fewest tokens × tokens, + one chunk of "
        f"{CHUNK_BYTES / 2**20:g} MiB) ({where(largest)}); at most 1: {'held' if memory <= 1 else 'missed'}",
    ]


def allowed_memory(result: Measured, measured: Sequence[Measured]) -> float:
    """Return the bytes that matching may allocate: for each token as many as with the fewest tokens, and one chunk."""
    fewest = min((other for other in measured if other.batch == result.batch), key=lambda other: other.tokens)
    return fewest.matching_memory / fewest.tokens * result.tokens + CHUNK_BYTES


def where(result: Measured | LeftOut) -> str:
    """Return a combination in words."""
    return f"{result.tokens} tokens, batch {result.batch}"
