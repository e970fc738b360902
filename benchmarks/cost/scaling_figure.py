"""Draw what merging costs as the tokens grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from algm_patch.core.nearest import CHUNK_BYTES

from .scaling_report import BAR, where
from .stages import FORWARD, MATCHING, LeftOut, Measured

# Colours that colour-blind people tell apart (Okabe and Ito), and a marker each.
STYLES = {
    FORWARD: ("black", "o"),
    "CLAP matching": ("#0072B2", "^"),
    "CLAP merge": ("#56B4E9", "v"),
    "GBM matching": ("#D55E00", "s"),
    "GBM merge": ("#E69F00", "D"),
    "unmerge": ("#009E73", "P"),
}


def draw(measured: Sequence[Measured], left_out: Sequence[LeftOut], title: str) -> Figure:
    """Return a figure with a row for each batch: time, share of the forward pass, memory."""
    batches = sorted({result.batch for result in measured})
    figure = Figure(figsize=(16, 2 + 4.2 * len(batches)), layout="constrained")
    panels = figure.subplots(len(batches), 3, squeeze=False, sharex=True, sharey="col")
    for row, batch in zip(panels, batches, strict=True):
        own = [result for result in measured if result.batch == batch]
        for axes, values in zip(row, (milliseconds, percent, kilobytes), strict=True):
            draw_panel(axes, own, values)
        shares = [100 * result.share(MATCHING) for result in own]
        tokens = [result.tokens for result in own]
        row[1].plot(tokens, shares, color="0.35", linestyle="--", label="CLAP + GBM matching")
        row[1].axhline(100 * BAR, color="0.35", linestyle=":", label=f"{BAR:.0%}, which matching must not reach")
        row[0].set(ylabel="milliseconds an image", title=f"batch {batch}: time")
        row[1].set(ylabel="% of the unpatched forward pass", title=f"batch {batch}: share")
        row[2].set(ylabel="kB a token, at the peak", title=f"batch {batch}: memory")
    for axes in panels[-1]:
        axes.set_xlabel("tokens of an image")
    ticks = sorted({result.tokens for result in measured})
    for axes in panels.flat:
        axes.set_xticks(ticks, [str(count) for count in ticks], rotation=30, minor=False)
        axes.tick_params(labelbottom=True, labelleft=True)
    labelled = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in panels[0]]
    entries = {label: handle for each in labelled for label, handle in each.items()}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False)
    notes = [
        title,
        "Each stage is given all tokens; half of the candidates merge. Hollow: measured on one block, × their number. "
        f"GBM matching holds at most {CHUNK_BYTES / 2**20:g} MiB of similarities at once.",
    ]
    if left_out:
        notes.append(f"Left out, would take too long: {'; '.join(map(where, left_out))}")
    figure.suptitle("\n".join(notes), fontsize="medium", wrap=True)
    return figure


def milliseconds(result: Measured, stage: str) -> float:
    """Return the milliseconds of a stage for an image."""
    return 1e3 * result.costs[stage].seconds / result.batch


def percent(result: Measured, stage: str) -> float:
    """Return the percentage of the forward pass that a stage takes."""
    return 100 * result.costs[stage].share


def kilobytes(result: Measured, stage: str) -> float:
    """Return the kilobytes that a stage allocates for a token."""
    return result.costs[stage].memory / 1e3


def draw_panel(axes: Axes, measured: Sequence[Measured], values: Callable[[Measured, str], float]) -> None:
    """Draw a curve for each stage, and for the forward pass unless it is 100 % by definition."""
    tokens = [result.tokens for result in measured]
    for stage, (colour, marker) in STYLES.items():
        if stage == FORWARD and values is percent:
            continue
        ys = [values(result, stage) for result in measured]
        axes.plot(tokens, ys, color=colour, marker=marker, markeredgecolor="white", markersize=8, label=stage)
        if stage == FORWARD and values is milliseconds:
            hollow = [i for i, result in enumerate(measured) if not result.whole]
            axes.plot([tokens[i] for i in hollow], [ys[i] for i in hollow], "o", color=colour, markerfacecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
