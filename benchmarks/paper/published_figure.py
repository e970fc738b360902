"""Draw figure 3 of the supplement: mIoU against the threshold during inference."""

from __future__ import annotations

from matplotlib.figure import Figure

from .published_tables import Sweep, gflops_change


def threshold(sweep: Sweep) -> str:
    """Return the figures behind Fig. 3 as text."""
    lines = ["Figure 3. Obtaining ALGM*. (The published one is a picture without numbers.)"]
    lines.append(f"{'τ':>8}{'mIoU (%)':>10}{'Δ mIoU':>8}{'95 %':>16}{'GFLOPs':>9}")
    lines.append(f"{'none':>8}{sweep.baseline.miou:10.1f}{'':24}{sweep.baseline.gflops:9.1f}   baseline")
    for tau, point in sorted(sweep.points.items(), reverse=True):
        marks = [name for name, own in (("ALGM", sweep.automatic), ("ALGM*", sweep.star)) if own == tau]
        change = f"{point.difference.value:+8.1f}{point.difference.signed_interval:>16}"
        line = f"{tau:8.4f}{point.miou:10.1f}{change}{point.gflops:9.1f}   {', '.join(marks)}"
        lines.append(line.rstrip())
    if sweep.star is None:
        lines.append("No threshold of these keeps the baseline's mIoU: there is no ALGM* among them.")
    return "\n".join(lines)


def draw(sweep: Sweep, data: str) -> Figure:
    """Return the figure: the curve, the baseline, ALGM and ALGM* marked."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    taus = sorted(sweep.points)
    points = [sweep.points[tau] for tau in taus]
    base = sweep.baseline.miou
    lows, highs = ([base + getattr(point.difference, end) for point in points] for end in ("low", "high"))
    axes.fill_between(taus, lows, highs, color="#0072B2", alpha=0.15, linewidth=0, label="95 %, of the difference")
    axes.plot(taus, [point.miou for point in points], color="#0072B2", marker="o", markersize=5, label="different τ")
    axes.axhline(base, color="black", linestyle="--", linewidth=1, label="baseline")
    for name, tau, marker, size, colour in (
        ("ALGM", sweep.automatic, "s", 9, "#D55E00"),
        ("ALGM*", sweep.star, "*", 15, "#009E73"),
    ):
        if tau is not None:
            point = sweep.points[tau]
            text = f"{name}: τ = {tau:.3f}, {gflops_change(point, sweep.baseline):+.0f} % GFLOPs".replace("-", "−")
            axes.plot([tau], [point.miou], marker, color=colour, markersize=size, label=text, markeredgecolor="white")
    axes.set_xlabel("threshold τ during inference")
    axes.set_ylabel("mIoU (%)")
    axes.set_title(f"{sweep.name} on {data}", fontsize=11, loc="left")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure
