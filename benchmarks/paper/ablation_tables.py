"""Define the supplement's ablations (Tab. 4 and 5): the settings of each row, and what was published for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from algm_patch import Settings


@dataclass(frozen=True)
class Published:
    """Hold a row of the supplement: mIoU in %, images a second, GFLOPs; and its label, where it differs from ours."""

    miou: float
    speed: float
    gflops: float
    label: str = ""


@dataclass(frozen=True)
class Row:
    """Hold a row of a table: its label, its settings, and the published row."""

    label: str
    settings: Settings
    published: Published | None = None


@dataclass(frozen=True)
class Table:
    """Hold one of the supplement's tables.

    Attributes:
        name, caption: as printed there.
        column: heading of the labels.
        baseline: its first row, without ALGM; None if it was not published.
        rows: the others.
        equal: GBM, too, merges as many tokens in each row as with the reference.
    """

    name: str
    caption: str
    column: str
    baseline: Published | None
    rows: Sequence[Row]
    equal: bool = False


SEGMENTER = Published(45.3, 134, 38.6)
EVA_DEPTH = 40


def feature(base: Settings, depth: int) -> list[Table]:
    """Return Tab. 4f: whose cosine decides."""
    published = {
        "key": ("K (Key)", Published(45.9, 200, 25.5)),
        "query": ("Q (Query)", Published(45.9, 200, 25.5)),
        "value": ("V (Value)", Published(46.0, 192, 26.1)),
        "token": ("T (Token)", Published(46.4, 192, 26.3)),
    }
    rows = [Row(label, base.replace(compare=compare), row) for compare, (label, row) in published.items()]
    return [Table("Table 4f", "Feature selection.", "Feature", SEGMENTER, rows, equal=True)]


def reduce(base: Settings, depth: int) -> list[Table]:
    """Return Tab. 4c: what a group becomes."""
    rows = [
        Row("Pick random token", base.replace(reduce="pick"), Published(45.0, 193, 26.1)),
        Row("Take average", base.replace(reduce="mean"), Published(46.4, 192, 26.3)),
    ]
    return [Table("Table 4c", "Token merging operation.", "Merging method", SEGMENTER, rows)]


def place(base: Settings, depth: int) -> list[Table]:
    """Return Tab. 4b: where in a block tokens merge."""
    rows = [
        Row("After MLP", base.replace(place="after_mlp"), Published(46.0, 187, 26.9)),
        Row("Betw. MHSA & MLP", base.replace(place="before_mlp"), Published(46.4, 192, 26.3)),
    ]
    return [Table("Table 4b", "Merging module placement.", "Position", SEGMENTER, rows)]


def clap(base: Settings, depth: int) -> list[Table]:
    """Return Tab. 4e: the layer of CLAP."""
    first = base.clap_layer or 1
    published = [Published(46.4, 192, 26.3, "1"), Published(46.4, 176, 28.5, "2"), Published(46.3, 168, 29.8, "3")]
    rows = [Row(str(first + i), base.replace(clap_layer=first + i), row) for i, row in enumerate(published)]
    return [Table("Table 4e", "CLAP module position.", "Layer", SEGMENTER, rows)]


def gbm(base: Settings, depth: int) -> list[Table]:
    """Return Tab. 4a, and Tab. 5 at the same fractions of the depth as in EVA's 40 layers."""
    first = base.gbm_layers[0]
    rows = [
        Row(f"{first} & {first + 2}", with_gbm(base, [first, first + 2]), Published(45.4, 214, 23.1, "5 & 7")),
        Row(f"{first}", with_gbm(base, [first]), Published(46.4, 192, 26.3, "5")),
    ]
    published = {
        (11, 21, 31): Published(61.5, 2.4, 3538, "11, 21, 31"),
        (11, 21): Published(61.4, 2.1, 3722, "11, 21"),
        (11,): Published(61.4, 2, 3872, "11"),
    }
    others = []
    for eva_layers, row in published.items():
        layers = [max(base.clap_layer or 1, round(layer * depth / EVA_DEPTH)) for layer in eva_layers]
        others.append(Row(", ".join(map(str, layers)), with_gbm(base, layers), row))
    return [
        Table("Table 4a", "Multiple GBM modules.", "Layer", SEGMENTER, rows),
        Table("Table 5", "Multiple GBM modules in EVA.", "Layers", Published(61.5, 1.9, 4080), others),
    ]


def with_gbm(base: Settings, layers: Sequence[int]) -> Settings:
    """Return the settings with GBM in other layers. A threshold for each layer holds for no others."""
    gbm_tau = "adaptive" if isinstance(base.gbm_tau, tuple) else base.gbm_tau
    return base.replace(gbm_layers=tuple(layers), gbm_tau=gbm_tau)


def window(base: Settings, depth: int) -> list[Table]:
    """Return a table of window sizes, which is not in the supplement."""
    sizes = [(1, 2), (2, 1), (2, 2), (3, 3), (4, 4)]
    rows = [Row(f"{height}×{width}", base.replace(window=(height, width))) for height, width in sizes]
    return [Table("Window size", "Not in the supplement, where it is 2×2.", "Window", None, rows, equal=True)]


# Each takes the reference's settings and the number of blocks.
TABLES: dict[str, Callable[[Settings, int], list[Table]]] = {
    "feature": feature,
    "reduce": reduce,
    "place": place,
    "clap": clap,
    "gbm": gbm,
    "window": window,
}
