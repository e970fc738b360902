"""The Pareto front of a search, drawn."""

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
    """What every setting that :func:`tune` measured keeps, against what it costs.

    Args:
        settings: that tune returned, or saved.
        axes: of matplotlib, to draw in. Default: a new figure.

    Raises:
        ValueError: if the settings were not measured.
        ModuleNotFoundError: if matplotlib is not installed.
    """
    measured = settings.record
    if measured is None:
        raise ValueError("pareto: these settings were not measured. Give those that tune returned, or saved")
    if axes is None:
        axes = new_figure((6.4, 4.2), "constrained").add_subplot()
    trials, best = measured.trials, front(measured.trials)
    axes.scatter([t.cost for t in trials], [t.kept for t in trials], s=14, color="0.7", label="tried")
    axes.plot(
        [t.cost for t in best], [t.kept for t in best], "o-", color="#0072B2", label="none keeps more at less cost"
    )
    axes.plot(measured.cost, measured.kept, "*", ms=16, color="#D55E00", label="chosen")
    axes.plot(measured.unpatched_cost, 1, "s", color="black", label="unpatched")
    axes.axhline(measured.keep, color="0.5", lw=1, ls="--", label=f"keep {measured.keep:g}")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{measured.unit} an image")
    axes.set_ylabel(WHAT_IS_KEPT[measured.judge])
    axes.set_title(f"{measured.model}, {measured.blocks} blocks, {measured.images} images")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return axes.figure  # type: ignore[return-value]
