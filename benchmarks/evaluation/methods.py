"""Define the methods that are compared, each as a way to run one model: ``with method.patch(model): ...``.

All share the library's parts: matching, merging, proportional attention through the mask that attention has, fused
attention, unmerging by copying before the final norm. A difference between them is one of the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from algm_patch import Settings

from ..common.arguments import number_or_rule
from ..common.patching import patched
from ..common.timing import in_turns, seconds
from .tome import tome

# The authors' thresholds: Segmenter on ADE20K (Ti, S, B, L), Cityscapes, Pascal-Context.
PUBLISHED_TAUS = (0.88, 0.9, 0.94, 0.95, 0.955)


@dataclass(frozen=True)
class Method:
    """Hold one point on a curve of the trade-off.

    Attributes:
        name: name of the curve.
        setting: label of the point.
        patch: returns for a model a context manager in which the model runs this way, and after which it is as before.
    """

    name: str
    setting: str
    patch: Callable[[nn.Module], AbstractContextManager[Any]] = field(repr=False)


def unpatched() -> Method:
    """Return the method that runs the model as it is."""
    return Method("unpatched", "", lambda model: nullcontext())


def tome_methods(rs: Iterable[int]) -> list[Method]:
    """Return ToMe with r merged tokens in each layer."""
    return [Method("ToMe", f"r={r}", partial(tome, r=r)) for r in rs]


def pooling_methods(layers: Iterable[int]) -> list[Method]:
    """Return 2x2 pooling in a layer: CLAP with a threshold that every window reaches.

    With proportional attention, which suits it better (CamVid, layer 1: 45.0 mIoU, without it 42.5).
    """
    return [
        Method("2×2 pooling", f"layer {layer}", partial(patched, clap_layer=layer, gbm_layers=[], tau=-1))
        for layer in layers
    ]


def published_methods(taus: Iterable[float] = PUBLISHED_TAUS) -> list[Method]:
    """Return ALGM as its authors run it: constant thresholds, layers 1 and 5, attention without the tokens' sizes."""
    fixed: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [5], "gbm_tau": "adaptive", "proportional_attention": False}
    return [Method("ALGM as published", f"τ={tau}", partial(patched, tau=tau, **fixed)) for tau in taus]


def default_methods(taus: Iterable[float | str]) -> list[Method]:
    """Return ALGM as ``apply_algm(model, tau=...)`` does it."""
    return [Method("ALGM defaults", f"τ={tau}", partial(patched, tau=tau)) for tau in taus]


def tuned_methods(paths: Iterable[Path]) -> list[Method]:
    """Return ALGM with settings that ``tune`` found and saved."""
    return [Method("ALGM tuned", path.stem, partial(patched, settings=Settings.load(path))) for path in paths]


def time_in_turns(model: nn.Module, images: Tensor, methods: Sequence[Method], rounds: int) -> list[list[float]]:
    """Return the seconds of a forward pass for each method, one number for each round."""

    def timer(method: Method) -> float:
        with method.patch(model):
            return seconds(model, images)

    spent = in_turns({index: partial(timer, method) for index, method in enumerate(methods)}, rounds)
    return [spent[index] for index in range(len(methods))]


def add_method_options(
    parser: argparse.ArgumentParser,
    tome: Sequence[int],
    pooling: Sequence[int],
    published: Sequence[float],
    tau: Sequence[float | str],
) -> None:
    """Add the options that say which methods are compared, with these defaults."""
    group = parser.add_argument_group("methods (an option without values leaves its method out)")

    def add(option: str, default: Sequence[Any], text: str, **rest: Any) -> None:
        shown = f"{text} (default: {' '.join(map(str, default))})" if default else text
        group.add_argument(option, nargs="*", default=default, help=shown, **rest)

    add("--tome", tome, "ToMe: tokens that merge in each layer", type=int, metavar="R")
    add("--pooling", pooling, "2x2 pooling: layers to pool in, one at a time", type=int, metavar="LAYER")
    add("--published", published, "ALGM as published, at these thresholds", type=float, metavar="TAU")
    add("--tau", tau, "ALGM with this library's defaults, at these thresholds", type=number_or_rule, metavar="TAU")
    add("--settings", [], "ALGM tuned: files that Settings.save wrote", type=Path, metavar="FILE")


def chosen_methods(options: argparse.Namespace) -> list[Method]:
    """Return the methods that ``add_method_options`` asks for, the unpatched model first."""
    return [
        unpatched(),
        *pooling_methods(options.pooling),
        *tome_methods(options.tome),
        *published_methods(options.published),
        *default_methods(options.tau),
        *tuned_methods(options.settings),
    ]
