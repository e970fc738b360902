"""Patch the models of public projects on their own code, and write what came of it.

    python tests/third_party.py FOLDER [NAME ...]

FOLDER holds checkouts under the names of their repositories ("dinov2", "vggt"), each with its commit in ".commit" or in
".git"; packages that they need may lie in FOLDER/.deps. Without names every row is run; with names of projects or rows,
those, and the others stay as they are in benchmarks/results/third_party.md. Each model is built small, with random
weights, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import third_party_geometry, third_party_images, third_party_others, third_party_segmentation
from tests.support.third_party_facts import try_row
from tests.support.third_party_rows import ROWS, Row

# Importing them adds their rows to ROWS.
MODULES = (third_party_geometry, third_party_images, third_party_segmentation, third_party_others)

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "benchmarks" / "results" / "third_party.md"
SECONDS = 300
RESULT = "RESULT "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("names", nargs="*", metavar="NAME", help="projects, or rows by the names of their functions")
    parser.add_argument("--in-this-process", action="store_true", help="run one row here and print what came of it")
    options = parser.parse_args()
    known = {name for row in ROWS for name in (row.project, row.name)}
    if unknown := sorted(set(options.names) - known):
        parser.error(f"no {', '.join(unknown)}: there are {', '.join(sorted(known))}")
    folder = options.folder.resolve()
    if options.in_this_process:
        (row,) = (row for row in ROWS if [row.name] == options.names)
        print(RESULT + json.dumps(try_row(row, folder)))
        return
    rows = [row for row in ROWS if not options.names or {row.project, row.name} & set(options.names)]
    for row in rows:
        cells = run(row, folder)
        write(row, cells)
        print(*cells.values(), sep=" | ", flush=True)


def run(row: Row, folder: Path) -> dict[str, str]:
    """Return the cells of a row, from a process of its own."""
    cells = dict.fromkeys(COLUMNS, "") | {"project": row.project, "row": row.name}
    if missing := [name for name in row.folders if not (folder / name).is_dir()]:
        return cells | {"outcome": f"not there: {', '.join(missing)}"}
    cells["commit"] = commit(folder / row.project)[:8]
    command = [sys.executable, __file__, str(folder), row.name, "--in-this-process"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return cells | {"outcome": f"not finished in {SECONDS} s"}
    found = [line.removeprefix(RESULT) for line in ran.stdout.splitlines() if line.startswith(RESULT)]
    if not found:
        return cells | {"outcome": f"the process ended with {ran.returncode}: {' '.join(ran.stderr.split()[-20:])}"}
    return cells | json.loads(found[-1])


def commit(checkout: Path) -> str:
    """Return the commit of a checkout, with or without its .git."""
    if (checkout / ".commit").exists():
        return (checkout / ".commit").read_text().strip()
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# -- the table

TITLE = """# Public projects on their own code

Written by `python tests/third_party.py FOLDER`: each model class as its project defines it, built small and with random
weights, patched, run and restored.

- *between blocks*: whether merged tokens stay merged from block to block, and how often a loop that is not known read
  the full grid there; or every block gives back the full grid.
- *full grid outside*: whether every output of the model has the shape that it has without the patch.
- *merging nothing*: whether a patch that merges nothing leaves the output as it is, bit for bit.
- *shuffled tokens*: the largest difference in the output, relative to its spread, if the patches are shuffled where
  they would be merged: positions, rotary angles and biases follow the tokens.
- *removed*: whether `remove_algm` leaves no trace, and the output bit for bit.

"""
COLUMNS = (
    "project",
    "row",
    "commit",
    "class",
    "outcome",
    "tokens after each layer",
    "between blocks",
    "full grid outside",
    "merging nothing",
    "shuffled tokens",
    "removed",
)


def write(row: Row, cells: dict[str, str]) -> None:
    """Put a row into the table, in place of its old one."""
    rows = old_rows()
    rows[row.name] = f"| {' | '.join(cells[column] for column in COLUMNS)} |"
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [rows[each.name] for each in ROWS if each.name in rows]
    TABLE.write_text(TITLE + "\n".join(lines) + "\n")


def old_rows() -> dict[str, str]:
    """Return the rows that the table has, by name."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return {line.split(" | ")[1]: line for line in lines if line.startswith("| ")}


if __name__ == "__main__":
    main()
