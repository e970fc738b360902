"""Print the rows of each table, and the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..common.stopwatch import PARTS
from . import attention
from .tables import Row


def speed_line(row: Row) -> str:
    """Return a row of the table of speed."""
    start = f"{row['method']:13} {row.get('setting', ''):22}"
    if "error" in row:
        return f"{start} {row['error']}"
    gain = f"{row['faster']:6.2f} × of {row['ideal']:.2f} ×, kept {row['kept']:.2f}" if "kept" in row else ""
    memory = f"{row['memory'] / 2**20:9.1f} MiB" if "memory" in row else " " * 13
    eager = f", {row['distance_to_eager']:.1e} from eager" if "distance_to_eager" in row else ""
    return (
        f"{start}{row['gflops']:9.3g} GFLOPs{1e3 * row['seconds']:10.3f} ms{row['images_per_second']:10.1f} im/s"
        f"{gain}{memory}   first call {row['first_call']:.1f} s{eager}"
    )


def split_line(row: Row) -> str:
    """Return a row of the table of shares."""
    return f"{row['method']:13} " + "  ".join(f"{part} {row[part]:6.1%}" for part in PARTS)


def correctness_line(row: Row) -> str:
    """Return a row of the table of errors against float64."""
    if "error" in row:
        return f"{row['dtype']:9} {row['error']}"
    return f"{row['dtype']:9} unpatched {row['unpatched']:.1e}, patched {row['patched']:.1e}"


def synchronisations_line(row: Row) -> str:
    """Return a row of the table of synchronisations."""
    return f"{row['method']:13} {row['synchronisations']}"


def conditions_line(row: Row) -> str:
    """Return a row of the table of conditions."""
    return f"{row['condition']:26} {row['error'] if 'error' in row else format(row['distance'], '.1e')}"


TABLES: dict[str, Callable[[Row], str]] = {
    "speed": speed_line,
    "split": split_line,
    "correctness": correctness_line,
    "synchronisations": synchronisations_line,
    "conditions": conditions_line,
    "kernels": attention.line,
}


def closing(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the bars, and what failed or was left out."""
    yield "\nBars"
    for row in results["bars"]:
        found = "; ".join(f"{where} {shown(number)}" for where, number in row["found"].items())
        yield f"  {row['verdict']:13} {row['bar']}{': ' * bool(found)}{found}"
    for title, entries in (
        ("Failed", [f"{row['task']}: {row['error']}" for row in results["errors"]]),
        ("Left out, no time", results["left_out"]),
    ):
        if entries:
            yield "\n".join([f"\n{title}", *(f"  {entry}" for entry in entries)])


def shown(number: float | str) -> str:
    """Return a number with three digits, or a text as it is."""
    return f"{number:.3g}" if isinstance(number, float) else str(number)
