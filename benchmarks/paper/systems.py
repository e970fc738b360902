"""Print every system that the paper compares with in one table of relative change: mIoU, GFLOPs, images a second.

    python -m benchmarks.paper.systems [--measured benchmarks/results/tradeoff_camvid.csv --title "ViT-S/14, CamVid"]

Published figures, in systems.csv beside this file, each with its source: the supplement of ALGM, and the tables in the
README files of the authors' repositories: Expedit-Segmenter (ELViT's, which measured ToMe, EViT and ACT too),
cts-segmenter, Dynamic-Token-Pruning (DToP). PAUMER's throughput and the GFLOPs of §3.1 are published as ratios. Figures
of different networks and machines are told as changes alone.

"direct": not trained with the system. --measured adds what benchmarks.paper.tradeoff measured.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.arguments import command_line
from .tradeoff_points import Point, read

FILE = Path(__file__).with_name("systems.csv")
MISSING = "–"


@dataclass(frozen=True)
class Change:
    """Hold what a system changes.

    Attributes:
        system, network, data, way, setting, source: text; ``way`` is "direct", "trained" or "fine-tuned".
        miou: in points.
        gflops, speed: in percent, of images a second; None where no figure was found.
    """

    system: str
    network: str
    data: str
    way: str
    setting: str
    miou: float
    gflops: float | None
    speed: float | None
    source: str


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("--measured", type=Path, metavar="FILE.csv", help="points of benchmarks.paper.tradeoff")
    parser.add_argument("--title", default="", help="network and data of the measured points, with a comma between")
    options = parser.parse_args(arguments)
    try:
        points = read(options.measured) if options.measured else []
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(table([*published(), *measured(points, options.title)]))


def published() -> list[Change]:
    """Return what was published."""
    with FILE.open(newline="") as file:
        return [published_change(row) for row in csv.DictReader(file)]


def published_change(row: dict[str, str]) -> Change:
    """Return the change of a row of the file."""
    return Change(
        row["system"],
        row["network"],
        row["data"],
        row["way"],
        row["setting"],
        float(row["miou"]) - float(row["miou_before"]),
        percent(row["gflops_before"], row["gflops"]),
        percent(row["speed_before"], row["speed"]),
        row["source"],
    )


def percent(before: str, after: str) -> float | None:
    """Return a change in percent; None if there is no figure."""
    return 100 * (float(after) / float(before) - 1) if before and after else None


def measured(points: Sequence[Point], title: str) -> list[Change]:
    """Return what the points change against the first one, the unpatched model."""
    network, _, data = title.partition(", ")
    return [
        Change(
            point.method,
            network,
            data,
            "direct",
            point.setting,
            point.difference.value,
            100 * (point.gflops / points[0].gflops - 1),
            100 * (1 / point.time - 1),
            "measured here",
        )
        for point in points[1:]
    ]


def table(changes: Iterable[Change]) -> str:
    """Return the changes as a table in Markdown."""
    unchanged = {"-0.0": "0.0", "+0.0": "0.0"}
    lines = ["| system | network, data | | mIoU | GFLOPs | images a second | source |", "|---|---|---|---|---|---|---|"]
    for one in changes:
        way = f"{one.way}, {one.setting}" if one.setting else one.way
        miou = f"{one.miou:+.1f}"
        cells = (unchanged.get(miou, miou), share(one.gflops), share(one.speed), one.source)
        texts = (one.system, f"{one.network}, {one.data}", way, *cells)
        lines.append(f"| {' | '.join(texts)} |".replace(" -", " −"))
    return "\n".join(lines)


def share(change: float | None) -> str:
    """Return a change in percent as text."""
    return MISSING if change is None else f"{change:+.0f} %"


if __name__ == "__main__":
    main()
