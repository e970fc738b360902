"""The Pareto front of a search, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..settings.settings import Settings
from ..settings.trial import front
from .layout import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHAT_IS_KEPT = {
    "pixels": "pixels of the unpatched model's class",
    "classes": "mean IoU with the unpatched prediction",
    "correlation": "correlation with the unpatched model",
    "cosine": "cosine with the unpatched model's tokens",
    "metric": "metric, of the unpatched model's",
}
FRONT = "#0072B2"
RIVAL_COLOURS = ("#CC79A7", "#E69F00", "#009E73")


def pareto(settings: Settings, axes: Axes | None = None, name: str | None = None) -> Figure:
    """Draw what all settings that ``algm_patch.tune`` tried keep, against what they cost.

    Bars end at the bound: on unseen images at least so much is kept, with 95 % confidence.

    Args:
        settings: as tune returned or saved them.
        axes: of matplotlib, to draw on. Default: those of a new figure, one for each name of what is kept.
        name: of what is kept, to draw on ``axes``. Default: the first.

    Raises:
        ValueError: if the settings have no record, or the record no such name.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    record = settings.record
    if record is None:
        raise ValueError(
            "pareto: these settings were not measured: their record is None. Give settings that tune returned or saved"
        )
    if name not in (None, *record.names):
        raise ValueError(f"pareto: what is kept in this record is {' and '.join(record.names)}, not {name!r}")
    if axes is not None:
        draw(record, name or record.names[0], axes)
        return axes.figure  # type: ignore[return-value]
    names = record.names if name is None else (name,)
    figure = new_figure((6.4 * len(names), 5.2), "constrained")
    for each, own in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
        draw(record, each, own)
    figure.suptitle(f"{record.model}, {record.blocks} blocks, {record.images} images, {record.held_back} held back")
    return figure


def draw(record: Any, name: str, axes: Axes) -> None:
    """Draw one of the things that are kept, with a legend below the axes, where it covers no point."""
    best = front(record.trials, name)
    others = [trial for trial in record.trials if trial not in best]
    if others:
        axes.scatter(*places(others, name), s=14, color="0.7", label="tried")
    draw_points(axes, best, name, "o-", FRONT, "none keeps more at less cost")
    kinds = list(dict.fromkeys(kind_of(rival) for rival in record.rivals))
    for kind, colour in zip(kinds, RIVAL_COLOURS, strict=False):
        draw_points(axes, [rival for rival in record.rivals if kind_of(rival) == kind], name, "D--", colour, kind)
    axes.plot(record.cost, record.kept[name], "*", ms=16, color="#D55E00", label="chosen")
    axes.plot(record.unpatched_cost, 1, "s", color="black", label="unpatched")
    if name in record.keep:
        axes.axhline(record.keep[name], color="0.5", lw=1, ls="--", label=f"keep {record.keep[name]:g}")
    if any(trial.low for trial in best):
        axes.vlines([], [], [], color=FRONT, lw=1, alpha=0.5, label="down to the bound for unseen images")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{record.unit} an image")
    axes.set_ylabel(WHAT_IS_KEPT.get(name, name))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize="small")


def kind_of(rival: Any) -> str:
    """Return what rivals of one kind have in common in their names: ToMe, lower resolution."""
    return str(rival.name).partition(",")[0]


def places(tried: Any, name: str) -> tuple[list[float], list[float]]:
    """Return what each costs, and what it keeps."""
    return [each.cost for each in tried], [each.kept[name] for each in tried]


def draw_points(axes: Axes, tried: Any, name: str, style: str, colour: str, label: str) -> None:
    """Draw a line through what is kept, and of each a bar down to its bound if there is one."""
    if tried:
        axes.plot(*places(tried, name), style, ms=4, color=colour, label=label)
    for each in tried:
        if each.low:
            axes.plot([each.cost] * 2, [each.low[name], each.kept[name]], "-", lw=1, color=colour, alpha=0.5)
