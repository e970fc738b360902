"""Write a table of the models of timm and transformers: patched, or refused and why.

    python -m benchmarks.evaluation.census

This writes benchmarks/results/coverage.md anew, with the installed versions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import timm
import transformers
from tqdm import tqdm

from algm_patch.cli.census import PATCHED, Outcome, timm_models, transformers_models
from algm_patch.files import written_whole

TABLE = Path(__file__).parents[1] / "results" / "coverage.md"
HEAD = "# Which models are patched\n\nWritten by `python -m benchmarks.evaluation.census`.\n"


def section(library: str, version: str, outcomes: Iterable[Outcome]) -> str:
    """Return the table of one library: classes with the same outcome share a row, patched classes come first."""
    rows: dict[tuple[bool, str, str], int] = defaultdict(int)
    for found in outcomes:
        rows[found.found != PATCHED, found.cls, found.found] += 1
    patched = {cls: count for (refused, cls, _), count in rows.items() if not refused}
    missing = sum(count for (_, _, found), count in rows.items() if found.startswith("not built"))
    total = sum(rows.values())
    lines = [
        f"## {library} {version}",
        "",
        f"Of {total} models {sum(patched.values())} are patched ({len(patched)} classes) and "
        f"{total - sum(patched.values()) - missing} refused, with the reason in the last column; {missing} "
        "could not be built.",
        "",
        "| class | models | outcome |",
        "|---|---|---|",
        *(f"| {cls} | {count} | {found.replace('|', '/')} |" for (_, cls, found), count in sorted(rows.items())),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables."""
    sections = (
        section("timm", timm.__version__, tqdm(timm_models(), "timm", len(timm.list_models()))),
        section("transformers", transformers.__version__, tqdm(transformers_models(), "transformers")),
    )
    with written_whole(TABLE) as unfinished:
        unfinished.write_text("\n".join([HEAD, *sections]))


if __name__ == "__main__":
    main()
