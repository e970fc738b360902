"""Print tables 2, 3 and 6 of the supplement with what was measured, the published rows to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .tradeoff_points import Point, curve_of

# Tab. 2, Pascal Context: change of mIoU in points, and of GFLOPs in per cent, for SETR-B and SegViT-L.
DTOP = {"DToP": ((0.1, -25), (-0.3, -29)), "ALGM": ((0.5, -25), (0.1, -22)), "ALGM*": ((0.1, -36), (0.0, -29))}
# Tab. 3, Segmenter with ViT-S on ADE20K: by gain of throughput in per cent, the mIoU of PAUMER and of ALGM.
PAUMER = {50: (40.7, 45.4), 100: (34.6, 43.4)}
PAUMER_BASELINE = 45.3
# Tab. 6, Segmenter with ViT-L on ADE20K, nothing trained: mIoU, images a second ("-": not published), GFLOPs.
DIRECT = {
    "unpatched": ("51.8", "10", "672"),
    "ALGM": ("51.8", "16", "436"),
    "ELViT": ("51.9", "12", "539"),
    "AiluRus": ("52.2", "-", "479"),
    "ToMe": ("51.7", "14", "505"),
}


@dataclass(frozen=True)
class Sweep:
    """Hold what ALGM comes to at several thresholds.

    Attributes:
        name: of the network.
        baseline: the unpatched model.
        points: by threshold.
        automatic: the threshold of ALGM.
    """

    name: str
    baseline: Point
    points: dict[float, Point]
    automatic: float

    @property
    def star(self) -> float | None:
        """Return the threshold of ALGM*: the lowest that keeps the baseline's mIoU; None if none does (§3.5)."""
        return min((tau for tau, point in self.points.items() if point.miou >= self.baseline.miou), default=None)

    def faster_by(self, gain: float) -> float | None:
        """Return the threshold that merges least of those with which throughput gains so many per cent, or None."""
        found = [tau for tau, point in self.points.items() if speed_gain(point) >= gain]
        return min(found, key=lambda tau: speed_gain(self.points[tau]), default=None)


def speed_gain(point: Point) -> float:
    """Return the gain of throughput in per cent."""
    return 100 / point.time - 100


def gflops_change(point: Point, baseline: Point) -> float:
    """Return the change of the GFLOPs in per cent."""
    return 100 * (point.gflops / baseline.gflops - 1)


def dtop(sweep: Sweep) -> str:
    """Return Tab. 2: ALGM and ALGM* beside DToP."""
    head = f"{'':26}{'mIoU ↑':>7}{'GFLOPs ↓':>10} |{'mIoU ↑':>14}{'GFLOPs ↓':>16}{'τ':>9}"
    published = "   | published: SETR-B      SegViT-L"
    lines = ["Table 2. ALGM vs. DToP: without and with token reduction.", head + published]
    for name, tau in (("DToP", None), ("ALGM", sweep.automatic), ("ALGM*", sweep.star)):
        label = f"{sweep.name} + {name}"
        if tau is None:
            reason = "needs training" if name == "DToP" else "no threshold of these keeps the mIoU"
            line = f"{label:26}{reason}"
        else:
            base, point = sweep.baseline, sweep.points[tau]
            with_reduction = f"{point.miou:6.1f} ({point.miou - base.miou:+.1f})"
            gflops = f"{point.gflops:7.1f} ({gflops_change(point, base):+.0f}%)"
            line = f"{label:26}{base.miou:7.1f}{base.gflops:10.1f} |{with_reduction:>14}{gflops:>16}{tau:9.4f}"
        changes = "".join(f"{f'{miou:+.1f}, {gflops:+d}%':>13}" for miou, gflops in DTOP[name])
        lines.append(f"{line:{len(head)}}   |       {changes}")
    return "\n".join(lines)


def paumer(sweep: Sweep) -> str:
    """Return Tab. 3: the mIoU at a given gain of throughput, beside PAUMER."""
    head = f"{'Method':26}{'mIoU (%) ↑':>11}{'Δ mIoU ↑':>10}{'Δ Im/sec':>10}{'τ':>9}"
    lines = ["Table 3. ALGM vs. PAUMER.", f"{head}   | published    PAUMER             ALGM"]
    lines.append(f"{sweep.name:26}{sweep.baseline.miou:11.1f}{'-':>10}{'-':>10}{'':9}   | {PAUMER_BASELINE}")
    for gain, theirs in PAUMER.items():
        tau = sweep.faster_by(gain)
        if tau is None:
            most = max(map(speed_gain, sweep.points.values()))
            line = f"+ ALGM: +{gain}% is not reached, at most {most:+.0f}%"
        else:
            point = sweep.points[tau]
            difference, faster = point.miou - sweep.baseline.miou, f"{speed_gain(point):+.0f}%"
            line = f"{'+ ALGM':26}{point.miou:11.1f}{difference:+10.1f}{faster:>10}{tau:9.4f}"
        cells = "".join(f"{f'{miou} ({miou - PAUMER_BASELINE:+.1f})':>17}" for miou in theirs)
        lines.append(f"{line:{len(head)}}   | {f'+{gain}%':6}{cells}")
    return "\n".join(lines)


def direct(sweep: Sweep, peers: Sequence[Point]) -> str:
    """Return the rows of Tab. 6 of methods that are applied directly, each at the GFLOPs next to ALGM's."""
    head = f"{'Method':26}{'mIoU (%) ↑':>11}{'Im/sec ↑':>10}{'GFLOPs ↓':>10}  {'setting':14}"
    lines = [
        "Table 6. ALGM and existing work, direct; of each method the setting whose GFLOPs are next to ALGM's.",
        f"{head}   | published{'mIoU':>6}{'Im/sec':>8}{'GFLOPs':>8}",
    ]
    algm = sweep.points[sweep.automatic]
    rows = [(sweep.name, sweep.baseline), ("+ ALGM (Direct)", algm)]
    rows += [(f"+ {point.method} (Direct)", point) for point in nearest(peers, algm.gflops)]
    for label, point in rows:
        speed = f"{1 / point.time:.2f} ×"
        line = f"{label:26}{point.miou:11.1f}{speed:>10}{point.gflops:10.1f}  {point.setting:14}"
        if point.method in DIRECT:
            miou, theirs, gflops = DIRECT[point.method]
            line = f"{line:{len(head)}}   | {'':9}{miou:>6}{theirs:>8}{gflops:>8}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def nearest(points: Iterable[Point], gflops: float) -> list[Point]:
    """Return of each method the point whose GFLOPs are nearest."""
    points = list(points)
    methods = dict.fromkeys(point.method for point in points)
    return [min(curve_of(points, method), key=lambda point: abs(point.gflops - gflops)) for method in methods]
