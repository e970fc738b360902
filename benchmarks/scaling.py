"""How the cost of merging grows with the tokens: time and memory of each stage, against the unpatched network.

    python benchmarks/scaling.py [--model vit_small_patch16_224] [--tokens 256 1024 ...] [--batches 1 8 32]
        [--device cpu] [--dtype float32] [--rounds 5] [--budget 100] [--out benchmarks/results/scaling_cpu]

A table, a CSV and a PNG. The stages of one CLAP and one GBM, and the unmerge at the end of the network:
- CLAP matching: similarity of the windows, who merges, the map; CLAP merge: the windows' means;
- GBM matching: every A token's best match, who merges, the map and its composition; GBM merge: the groups' means;
- unmerge: the full grid again.

Each stage is given all tokens. In a network GBM finds what CLAP has left, and costs less: its matching is quadratic.
The tokens are random, the thresholds such that half of the windows and half of the proposals of a batch merge, every
image by its own content.

"forward" is the unpatched network, with random weights. Where it would take longer than the budget, one block is
measured and multiplied by their number (marked "*"): blocks are alike, what stands around them is left out. Shares are
of that forward pass: medians over rounds in which all take their turn. What would take longer even so is left out, and
said to be. The budget is in seconds, for each combination of tokens and batch.

Memory: the peak of what is allocated beyond the input, in bytes a token; of the forward pass, that of one block.

At the end, whether it grows as it should: matching takes less than 5 % of the forward pass; its memory is linear in
the tokens, but for one chunk of similarities of a fixed size.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from overhead import peak_memory, seconds
from segmentation import positive
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from algm_patch.core.matching import CHUNK_BYTES, best_matches, window_similarity
from algm_patch.core.plan import plan_clap, plan_gbm
from algm_patch.functional import TokenMap

WINDOW = (2, 2)
LAYER = 5  # of GBM; a threshold that is a number does not depend on it
FORWARD = "forward"
MATCHING = ("CLAP matching", "GBM matching")
STAGES = ("CLAP matching", "CLAP merge", "GBM matching", "GBM merge", "unmerge")
BAR = 0.05

# What is called with what.
Call = tuple[Callable[[Tensor], object], Tensor]


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        seconds: for the batch.
        share: of the unpatched forward pass.
        memory: bytes a token, at the peak of what it allocates.
    """

    seconds: float
    share: float
    memory: float


@dataclass(frozen=True)
class Record:
    """What a number of tokens in a batch costs.

    Attributes:
        tokens: of an image, without the prefix.
        whole: whether the forward pass was measured on the network, not on one block.
        costs: of the forward pass and of each stage.
    """

    tokens: int
    batch: int
    whole: bool
    costs: dict[str, Cost]

    def share(self, stages: Sequence[str]) -> float:
        """Of the forward pass, all of these stages together."""
        return sum(self.costs[stage].share for stage in stages)

    @property
    def matching_memory(self) -> float:
        """Bytes at the peak of matching. One matching has given back its memory when the other begins."""
        return max(self.costs[stage].memory for stage in MATCHING) * self.batch * self.tokens


@dataclass(frozen=True)
class LeftOut:
    """A combination that would take so many seconds, more than the budget."""

    tokens: int
    batch: int
    seconds: float


def main(arguments: list[str] | None = None) -> tuple[list[Record], list[LeftOut]]:
    options = parse(arguments)
    model = network(options.model).eval().to(options.device, getattr(torch, options.dtype))
    title = f"{options.model}, {options.dtype}, {machine(options.device)}"
    print(f"{title}, torch {torch.__version__}, timm {timm.__version__}, median of {options.rounds} rounds\n{HEADER}")
    combinations = [(tokens, batch) for batch in sorted(options.batches) for tokens in sorted(options.tokens)]
    measured, left_out = [], []
    with torch.inference_mode():
        for found in scaling(model, combinations, options.rounds, options.budget):
            (measured if isinstance(found, Record) else left_out).append(found)
            print(line(found), flush=True)
    out = options.out or Path(__file__).parent / "results" / f"scaling_{torch.device(options.device).type}"
    out.parent.mkdir(parents=True, exist_ok=True)
    tables, picture = out.with_suffix(".csv"), out.with_suffix(".png")
    write(tables, measured, left_out)
    print("\n" + "\n".join(verdicts(measured) if measured else ["Nothing fits the budget: give more"]))
    print(f"\n{tables}")
    if measured:
        draw(measured, left_out, title).savefig(picture, dpi=120)
        print(picture)
    return measured, left_out


def network(name: str) -> VisionTransformer:
    """A plain vision transformer of timm, with random weights, for any number of tokens."""
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, dynamic_img_size=True)
    except (RuntimeError, TypeError) as error:  # no such model, or one of another kind
        raise SystemExit(f"error: {name}: {error}. Give a plain vision transformer of timm's") from error
    if not isinstance(model, VisionTransformer):
        raise SystemExit(f"error: {name} is a {type(model).__name__}. Give a plain vision transformer of timm's")
    return model


def machine(device: str) -> str:
    """What the network runs on, in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}"


# -- measuring


def scaling(
    model: VisionTransformer, combinations: Sequence[tuple[int, int]], rounds: int, budget: float
) -> Iterator[Record | LeftOut]:
    """Of each combination (tokens, batch), as far as it is expected to take no more than ``budget`` seconds."""
    turns = rounds + 2  # and one to measure memory, one to warm up
    fewest = min(tokens for tokens, _ in combinations)
    x = random_tokens(model, fewest, 1)
    rate = min(seconds(model.blocks[0], x) for _ in range(3)) / work(model, fewest, 1)
    for tokens, batch in combinations:
        expected = turns * rate * work(model, tokens, batch)
        if expected > budget:
            yield LeftOut(tokens, batch, expected)
            continue
        measured = measure(model, tokens, batch, rounds, whole=len(model.blocks) * expected <= budget)
        rate = measured.costs[FORWARD].seconds / len(model.blocks) / work(model, tokens, batch)
        yield measured


def work(model: VisionTransformer, tokens: int, batch: int) -> int:
    """Operations of a block, up to a factor: of its linear layers and of attention."""
    return batch * tokens * (12 * model.embed_dim + 2 * tokens)


def random_tokens(model: VisionTransformer, tokens: int, batch: int) -> Tensor:
    """[B, P+N, D]"""
    weight = model.blocks[0].norm1.weight
    return torch.randn(batch, model.num_prefix_tokens + tokens, model.embed_dim).to(weight)


def measure(model: VisionTransformer, tokens: int, batch: int, rounds: int, whole: bool) -> Record:
    """
    Args:
        tokens: of an image, a square grid.
        whole: measure the forward pass on the network, not on one block.
    """
    side = isqrt(tokens)
    x = random_tokens(model, tokens, batch)
    calls = {FORWARD: (model.blocks[0], x), **stages(x, (side, side), model.num_prefix_tokens)}
    memory = {name: peak_memory(*call) / (batch * tokens) for name, call in calls.items()}
    if whole:
        high, wide = model.patch_embed.patch_size
        calls[FORWARD] = model.forward_features, torch.randn(batch, 3, side * high, side * wide).to(x)
    for call in calls.values():  # warm up
        seconds(*call)
    spent = in_turns(calls, rounds)
    if not whole:
        spent[FORWARD] = [len(model.blocks) * time for time in spent[FORWARD]]
    costs = {
        name: Cost(
            statistics.median(times),
            statistics.median(time / forward for time, forward in zip(times, spent[FORWARD], strict=True)),
            memory[name],
        )
        for name, times in spent.items()
    }
    return Record(tokens, batch, whole, costs)


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; in a new order every round."""
    order = random.Random(0)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            spent[name].append(seconds(*calls[name]))
    return spent


def stages(x: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> dict[str, Call]:
    """The stages of ALGM on tokens [B, P+H*W, D], each with its input, half of the candidates merging."""
    windows = window_similarity(x[:, num_prefix_tokens:], grid, WINDOW)
    proposals, *_ = best_matches(x, num_prefix_tokens)
    tau, gbm_tau = (similarity.median().item() for similarity in (windows, proposals))
    everything = TokenMap.identity(*x.shape[:2], x.device)

    def match_clap(x: Tensor) -> object:
        return plan_clap(x, grid, tau, WINDOW, num_prefix_tokens, "image")

    def match_gbm(x: Tensor) -> object:
        plan = plan_gbm(x, everything.sizes, gbm_tau, LAYER, num_prefix_tokens, "image")
        return everything.then(plan.step)

    local = plan_clap(x, grid, tau, WINDOW, num_prefix_tokens, "image")
    everywhere = plan_gbm(x, everything.sizes, gbm_tau, LAYER, num_prefix_tokens, "image")

    def unmerge(merged: Tensor) -> Tensor:
        step = fresh(everywhere.step)
        return step.unmerge(step.unpack(merged))

    return {
        "CLAP matching": (match_clap, x),
        "CLAP merge": (lambda x: replace(local, step=fresh(local.step))(x), x),
        "GBM matching": (match_gbm, x),
        "GBM merge": (lambda x: replace(everywhere, step=fresh(everywhere.step))(x), x),
        "unmerge": (unmerge, everywhere(x)),
    }


def fresh(token_map: TokenMap) -> TokenMap:
    """As in a new forward pass: without what the map has computed and kept."""
    return replace(token_map, packing=token_map.packing and replace(token_map.packing))


# -- what must hold


def verdicts(measured: Sequence[Record]) -> list[str]:
    slowest = max(measured, key=lambda found: found.share(MATCHING))
    share = slowest.share(MATCHING)
    largest = max(measured, key=lambda found: found.matching_memory / allowed(found, measured))
    memory = largest.matching_memory / allowed(largest, measured)
    return [
        f"up to {max(found.tokens for found in measured)} tokens",
        f"matching, CLAP and GBM: at most {share:.2%} of the unpatched forward pass ({place(slowest)}); "
        f"less than {BAR:.0%}: {'held' if share < BAR else 'missed'}",
        f"memory of matching: at most {memory:.2f} × (the bytes a token at the fewest tokens × tokens, + one chunk of "
        f"{CHUNK_BYTES / 2**20:g} MiB) ({place(largest)}); at most 1: {'held' if memory <= 1 else 'missed'}",
    ]


def allowed(found: Record, measured: Sequence[Record]) -> float:
    """Bytes that matching may allocate: as many a token as at the fewest tokens of this batch, and one chunk."""
    fewest = min((other for other in measured if other.batch == found.batch), key=lambda other: other.tokens)
    return fewest.matching_memory / fewest.tokens * found.tokens + CHUNK_BYTES


def place(found: Record | LeftOut) -> str:
    return f"{found.tokens} tokens, batch {found.batch}"


# -- what is written

# Their widths in the table.
COLUMNS = (
    ("tokens", 7),
    ("batch", 6),
    ("forward, ms", 14),
    ("CLAP match", 14),
    ("merge", 7),
    ("GBM match", 11),
    ("merge", 7),
    ("unmerge", 9),
    ("matching", 10),
    ("all", 7),
    ("forward", 13),
    ("matching", 10),
)
HEADER = f"{'% of the forward pass':>49}{'bytes a token':>66}\n" + "".join(
    f"{name:>{width}}" for name, width in COLUMNS
)


def line(found: Record | LeftOut) -> str:
    """A row of the table."""
    cells = [str(found.tokens), str(found.batch)]
    if isinstance(found, Record):
        forward = found.costs[FORWARD]
        cells.append(f"{1e3 * forward.seconds:.1f}{' ' if found.whole else '*'}")
        cells += [f"{100 * found.share(stages):.2f}" for stages in (*([stage] for stage in STAGES), MATCHING, STAGES)]
        cells += [f"{memory:.0f}" for memory in (forward.memory, found.matching_memory / found.batch / found.tokens)]
    row = "".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=False))
    return row if isinstance(found, Record) else f"{row}    left out: would take about {found.seconds:.0f} s"


def write(path: Path, measured: Sequence[Record], left_out: Sequence[LeftOut]) -> None:
    """A row for each stage; for what was left out, one without numbers."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tokens", "batch", "stage", "milliseconds", "share", "bytes_per_token", "forward_measured_on"])
        for found in measured:
            source = "network" if found.whole else "one block"
            for stage, cost in found.costs.items():
                numbers = f"{1e3 * cost.seconds:.4g}", f"{cost.share:.4g}", f"{cost.memory:.0f}"
                writer.writerow([found.tokens, found.batch, stage, *numbers, source])
        for missing in left_out:
            writer.writerow([missing.tokens, missing.batch, "left out", "", "", "", ""])


# Colours that colour-blind people tell apart (Okabe and Ito), and a marker each.
STYLES = {
    FORWARD: ("black", "o"),
    "CLAP matching": ("#0072B2", "^"),
    "CLAP merge": ("#56B4E9", "v"),
    "GBM matching": ("#D55E00", "s"),
    "GBM merge": ("#E69F00", "D"),
    "unmerge": ("#009E73", "P"),
}


def draw(measured: Sequence[Record], left_out: Sequence[LeftOut], title: str) -> Figure:
    """For each batch a row: time, share of the forward pass, memory."""
    batches = sorted({found.batch for found in measured})
    figure = Figure(figsize=(16, 2 + 4.2 * len(batches)), layout="constrained")
    panels = figure.subplots(len(batches), 3, squeeze=False, sharex=True, sharey="col")
    for row, batch in zip(panels, batches, strict=True):
        own = [found for found in measured if found.batch == batch]
        for axes, values in zip(row, (milliseconds, percent, kilobytes), strict=True):
            draw_panel(axes, own, values)
        shares = [100 * found.share(MATCHING) for found in own]
        row[1].plot([found.tokens for found in own], shares, color="0.35", linestyle="--", label="CLAP + GBM matching")
        row[1].axhline(100 * BAR, color="0.35", linestyle=":", label=f"{BAR:.0%}, which matching must not reach")
        row[0].set(ylabel="milliseconds an image", title=f"batch {batch}: time")
        row[1].set(ylabel="% of the unpatched forward pass", title=f"batch {batch}: share")
        row[2].set(ylabel="kB a token, at the peak", title=f"batch {batch}: memory")
    for axes in panels[-1]:
        axes.set_xlabel("tokens of an image")
    tokens = sorted({found.tokens for found in measured})
    for axes in panels.flat:
        axes.set_xticks(tokens, [str(count) for count in tokens], rotation=30, minor=False)
        axes.tick_params(labelbottom=True, labelleft=True)
    labelled = [dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) for axes in panels[0]]
    entries = {label: handle for found in labelled for label, handle in found.items()}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, frameon=False)
    notes = [
        title,
        "Each stage is given all tokens; half of the candidates merge. Hollow: measured on one block, × their number. "
        f"GBM matching holds at most {CHUNK_BYTES / 2**20:g} MiB of similarities at once.",
    ]
    if left_out:
        notes.append(f"Left out, would take too long: {'; '.join(map(place, left_out))}")
    figure.suptitle("\n".join(notes), fontsize="medium", wrap=True)
    return figure


def milliseconds(found: Record, stage: str) -> float:
    return 1e3 * found.costs[stage].seconds / found.batch


def percent(found: Record, stage: str) -> float:
    return 100 * found.costs[stage].share


def kilobytes(found: Record, stage: str) -> float:
    return found.costs[stage].memory / 1e3


def draw_panel(axes: Axes, measured: Sequence[Record], values: Callable[[Record, str], float]) -> None:
    """A curve for each stage; the forward pass, unless it is 100 % by definition."""
    tokens = [found.tokens for found in measured]
    for stage, (colour, marker) in STYLES.items():
        if stage == FORWARD and values is percent:
            continue
        ys = [values(found, stage) for found in measured]
        axes.plot(tokens, ys, color=colour, marker=marker, markeredgecolor="white", markersize=8, label=stage)
        if stage == FORWARD and values is milliseconds:
            hollow = [i for i, found in enumerate(measured) if not found.whole]
            axes.plot([tokens[i] for i in hollow], [ys[i] for i in hollow], "o", color=colour, markerfacecolor="white")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def square(text: str) -> int:
    """A number of tokens that is a square grid with at least one window."""
    tokens = int(text)
    side = max(2, isqrt(max(tokens, 0)))
    if side * side != tokens:
        raise argparse.ArgumentTypeError(f"{tokens} tokens are no square grid: give {side**2} or {(side + 1) ** 2}")
    return tokens


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224", help="a plain vision transformer of timm")
    parser.add_argument(
        "--tokens",
        type=square,
        nargs="+",
        default=[256, 576, 1024, 2304, 4096, 9216, 16384],
        help="of an image: squares (default: 256 to 16384)",
    )
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32], help="(default: 1 8 32)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--rounds", type=positive, default=5, help="(default: 5)")
    parser.add_argument(
        "--budget", type=float, default=100, help="seconds for each combination of tokens and batch (default: 100)"
    )
    parser.add_argument("--out", type=Path, help="files, without ending (default: results/scaling_DEVICE beside this)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
