"""The Pareto front of a search, drawn with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..settings.record import front
from ..settings.settings import Settings
from .figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHAT_IS_KEPT = {
    "agreement": "pixels of the unpatched model's class",
    "correlation": "correlation with the unpatched model",
    "cosine": "cosine with the unpatched model's tokens",
    "metric": "metric, of the unpatched model's",
}


def pareto(settings: Settings, axes: Axes | None = None) -> Figure:
    """Draw what all settings that ``algm_patch.tune`` tried keep, against what they cost.

    Args:
        settings: as tune returned or saved them.
        axes: of matplotlib, to draw on. Default: those of a new figure.

    Raises:
        ValueError: if the settings have no record.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    record = settings.record
    if record is None:
        raise ValueError(
            "pareto: these settings were not measured: their record is None. Give settings that tune returned or saved"
        )
    if axes is None:
        axes = new_figure((6.4, 4.2), "constrained").add_subplot()
    trials, best = record.trials, front(record.trials)
    axes.scatter([t.cost for t in trials], [t.kept for t in trials], s=14, color="0.7", label="tried")
    axes.plot(
        [t.cost for t in best], [t.kept for t in best], "o-", color="#0072B2", label="none keeps more at less cost"
    )
    axes.plot(record.cost, record.kept, "*", ms=16, color="#D55E00", label="chosen")
    axes.plot(record.unpatched_cost, 1, "s", color="black", label="unpatched")
    axes.axhline(record.keep, color="0.5", lw=1, ls="--", label=f"keep {record.keep:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{record.unit} an image")
    axes.set_ylabel(WHAT_IS_KEPT[record.judge])
    axes.set_title(f"{record.model}, {record.blocks} blocks, {record.images} images")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return axes.figure  # type: ignore[return-value]
