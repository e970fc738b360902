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
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm
from tests.support import third_party_geometry, third_party_images, third_party_segmentation  # noqa: F401: their rows
from tests.support.contract import SETTINGS, permute_in_place_of_clap, trace
from tests.support.models_mmseg import with_random_weights
from tests.support.third_party_rows import ROWS, Built, Row

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


# -- one row


def try_row(row: Row, folder: Path) -> dict[str, str]:
    """Return what came of one model, as cells of the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.path[:0] = [str(folder / name) for name in row.folders]
    sys.path.append(str(folder / ".deps"))
    os.chdir(folder / row.folders[0])  # some read files of their own from there
    try:
        model, forward = row.build()
    except Exception as error:
        traceback.print_exc()
        return {"outcome": f"could not be built: {told(error)}"}
    cells = {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    with_random_weights(model)
    try:
        apply_algm(model, **SETTINGS, **row.settings)
    except Exception as error:
        traceback.print_exc()
        return cells | {"outcome": f"refused: {told(error)}"}
    remove_algm(model)
    try:
        return cells | facts((model, forward), row.settings)
    except Exception as error:
        traceback.print_exc()
        return cells | {"outcome": f"patched, then: {told(error)}"}


@torch.no_grad()
def facts(built: Built, settings: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a model that takes the patch."""
    model, forward = built
    expected, before = list(tensors(forward())), trace(model)
    if not equal(forward, expected):
        raise RuntimeError("the unpatched model gives something else each time")
    if not all(each.isfinite().all() for each in expected):
        raise RuntimeError("the unpatched model gives numbers that are not finite")
    apply_algm(model, **SETTINGS, **settings)
    merged = list(tensors(forward()))
    handles = handles_of(model)
    tokens = {name: handle.tokens_per_layer for name, handle in handles.items()}
    taps = {name: handle.last_pass.taps for name, handle in handles.items()}
    apply_algm(model, **{**SETTINGS, **settings, "tau": 2, "gbm_layers": []})
    nothing_merged = equal(forward, expected)
    with pytest.MonkeyPatch.context() as patch:
        permute_in_place_of_clap(patch)
        apply_algm(model, **{**SETTINGS, **settings, "gbm_layers": []})
        shuffled = list(tensors(forward()))
    remove_algm(model)
    return {
        "outcome": "patched" if any(map(merges, tokens.values())) else "patched, but nothing merges",
        "tokens after each layer": "; ".join(f"{name} {shorter(each)}".strip() for name, each in tokens.items()),
        "between blocks": "; ".join("merged" if each is not None else "full grid" for each in taps.values()),
        "full grid outside": yes([each.shape for each in merged] == [each.shape for each in expected]),
        "merging nothing": "bitwise" if nothing_merged else "DIFFERS",
        "shuffled tokens": f"{difference(shuffled, expected):.0e}",
        "removed": "bitwise" if trace(model) == before and equal(forward, expected) else "DIFFERS",
    }


def handles_of(model: Any) -> dict[str, Any]:
    """Return the handles of the ViTs in a model by name; of the only one, under no name."""
    return {"": model.algm}


def merges(tokens: list[int]) -> bool:
    """Return whether there are fewer tokens in the end."""
    return len(set(tokens)) > 1


def shorter(tokens: list[int]) -> str:
    """Return token counts in words: "31 12x3 8"."""
    runs: list[list[int]] = []
    for count in tokens:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(str(count) if times == 1 else f"{count}x{times}" for count, times in runs)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in whatever a model returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from tensors(each)
    elif isinstance(output, (list, tuple)):
        for each in output:
            yield from tensors(each)
    elif hasattr(output, "__dict__"):
        yield from tensors(vars(output))


def equal(forward: Callable[[], Any], expected: list[Tensor]) -> bool:
    """Return whether a model gives the very same numbers."""
    found = list(tensors(forward()))
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the spread of the tensor that it is in."""
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if other.numel()]
    return max(float((one - other).abs().max() / (other.std(correction=0) + 1e-12)) for one, other in pairs)


def told(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".replace("|", "/")


def yes(fact: bool) -> str:
    """Return a fact as a cell."""
    return "yes" if fact else "NO"


# -- the table

TITLE = """# Public projects on their own code

Written by `python tests/third_party.py FOLDER`: each model class as its project defines it, built small and with random
weights, patched, run and restored.

- *between blocks*: whether merged tokens stay merged from block to block, or every block gives back the full grid.
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
