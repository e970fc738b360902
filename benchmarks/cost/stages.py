"""Time the stages of merging on random tokens, against the unpatched network."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from algm_patch.core.matching import best_matches, window_similarity
from algm_patch.core.plan import plan_clap, plan_gbm
from algm_patch.functional import TokenMap

from ..common.memory import peak_memory
from ..common.timing import in_turns, seconds

WINDOW = (2, 2)
LAYER = 5  # of GBM; a threshold that is a number does not depend on it
FORWARD = "forward"
MATCHING = ("CLAP matching", "GBM matching")
STAGES = ("CLAP matching", "CLAP merge", "GBM matching", "GBM merge", "unmerge")

# A function and its input.
Task = tuple[Callable[[Tensor], object], Tensor]


@dataclass(frozen=True)
class Cost:
    """Hold the cost of one stage.

    Attributes:
        seconds: for the batch.
        share: seconds divided by those of the unpatched forward pass.
        memory: bytes a token at the peak of what it allocates.
    """

    seconds: float
    share: float
    memory: float


@dataclass(frozen=True)
class Measured:
    """Hold the costs for a number of tokens in a batch.

    Attributes:
        tokens: tokens of an image, without the prefix.
        batch: number of images.
        whole: the forward pass was measured on the network, not on one block.
        costs: the costs of the forward pass and of each stage.
    """

    tokens: int
    batch: int
    whole: bool
    costs: dict[str, Cost]

    def share(self, stages: Sequence[str]) -> float:
        """Return the share of the forward pass that these stages take together."""
        return sum(self.costs[stage].share for stage in stages)

    @property
    def matching_memory(self) -> float:
        """Return the bytes at the peak of matching. One matching has freed its memory when the other begins."""
        return max(self.costs[stage].memory for stage in MATCHING) * self.batch * self.tokens


@dataclass(frozen=True)
class LeftOut:
    """Hold a combination that would take this many seconds, more than the budget."""

    tokens: int
    batch: int
    seconds: float


def scaling(
    model: VisionTransformer, combinations: Sequence[tuple[int, int]], rounds: int, budget: float
) -> Iterator[Measured | LeftOut]:
    """Measure each combination (tokens, batch) that is expected to take at most ``budget`` seconds."""
    turns = rounds + 2  # and one to measure memory, one to warm up
    fewest = min(tokens for tokens, _ in combinations)
    x = random_tokens(model, fewest, 1)
    rate = min(seconds(model.blocks[0], x) for _ in range(3)) / block_work(model, fewest, 1)
    for tokens, batch in combinations:
        expected = turns * rate * block_work(model, tokens, batch)
        if expected > budget:
            yield LeftOut(tokens, batch, expected)
            continue
        measured = measure(model, tokens, batch, rounds, whole=len(model.blocks) * expected <= budget)
        rate = measured.costs[FORWARD].seconds / len(model.blocks) / block_work(model, tokens, batch)
        yield measured


def block_work(model: VisionTransformer, tokens: int, batch: int) -> int:
    """Return the operations of a block, up to a factor: those of its linear layers and of attention."""
    return batch * tokens * (12 * model.embed_dim + 2 * tokens)


def random_tokens(model: VisionTransformer, tokens: int, batch: int) -> Tensor:
    """Return random tokens [B, P+N, D] on the model's device, in its dtype."""
    weight = next(model.parameters())
    return torch.randn(batch, model.num_prefix_tokens + tokens, model.embed_dim).to(weight)


def measure(model: VisionTransformer, tokens: int, batch: int, rounds: int, whole: bool) -> Measured:
    """Measure the forward pass and each stage.

    Args:
        tokens: tokens of an image, a square grid.
        whole: measure the forward pass on the network, not on one block.
    """
    side = isqrt(tokens)
    x = random_tokens(model, tokens, batch)
    tasks: dict[str, Task] = {FORWARD: (model.blocks[0], x), **stages(x, (side, side), model.num_prefix_tokens)}
    memory = {name: peak_memory(*task) / (batch * tokens) for name, task in tasks.items()}
    if whole:
        height, width = model.patch_embed.patch_size
        tasks[FORWARD] = model.forward_features, torch.randn(batch, 3, side * height, side * width).to(x)
    timers = {name: partial(seconds, *task) for name, task in tasks.items()}
    in_turns(timers, 1)  # warm up
    spent = in_turns(timers, rounds)
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
    return Measured(tokens, batch, whole, costs)


def stages(x: Tensor, grid: tuple[int, int], num_prefix_tokens: int) -> dict[str, Task]:
    """Return the stages of ALGM on tokens [B, P+H*W, D], each with its input, half of the candidates merging."""
    windows = window_similarity(x[:, num_prefix_tokens:], grid, WINDOW)
    proposals, *_ = best_matches(x, num_prefix_tokens)
    tau, gbm_tau = (similarity.median().item() for similarity in (windows, proposals))
    everything = TokenMap.identity(x.shape[0], x.shape[1], x.device)

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
    """Return a map as in a new forward pass: without what it has computed and kept."""
    return replace(token_map, packing=token_map.packing and replace(token_map.packing))
