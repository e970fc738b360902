"""Print the tables of earlier GPU runs, and their rows beside what others have published.

    python -m benchmarks.gpu.show [FILE ...]

FILE: what benchmarks/gpu/suite.py wrote (default: all in benchmarks/results). Needs no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ..common.arguments import command_line
from .bars import where
from .lines import TABLES, closing
from .methods import FIXED, UNPATCHED
from .suite import RESULTS
from .tables import Row

FACTS = ("card", "torch", "cuda", "timm", "dtype", "rounds")
CLAIMS = {
    "ViT-Ti": "ALGM on Segmenter with ViT-Ti, H100: 665 images a second against 660 unpatched, 1.01 ×",
    "ViT-L": "MPM on ViT-L: 1.57 × without flash attention, 1.22 × with",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, default=sorted(RESULTS.glob("gpu_*.json")))
    for file in parser.parse_args(arguments).files:
        print("\n".join(report(json.loads(file.read_text()))))


def report(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a run's tables, its bars, what was left out, and what others have published."""
    yield ", ".join(f"{name} {results[name]}" for name in FACTS)
    for table, line in TABLES.items():
        for place, rows in groupby(results[table], lambda row: where({"model": row.get("case"), "batch": 1} | row)):
            yield f"\n{table}: {place}"
            yield from (f"  {line(row)}" for row in rows)
    yield from closing(results)
    yield from beside_claims(results["speed"])


def beside_claims(speed: list[Row]) -> Iterator[str]:
    """Yield what others have published of a network, and the measured rows of the same network."""
    yield "\nBeside what others have published"
    unpatched = {where(row): row for row in speed if row["method"] == UNPATCHED}
    for name, claim in CLAIMS.items():
        yield f"  {claim}"
        for row in speed:
            if (row["model"], row["method"]) == (name, FIXED) and "faster" in row:
                before, after = (each["images_per_second"] for each in (unpatched[where(row)], row))
                yield f"    here, {where(row)}: {after:.0f} images a second against {before:.0f}, {row['faster']:.2f} ×"


if __name__ == "__main__":
    main()
