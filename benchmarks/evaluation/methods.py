"""Define the methods that are compared, each as a way to run one model: ``with method.patch(model): ...``.

All that merge share the library's parts: matching, merging, proportional attention through the mask that attention has,
fused attention, unmerging by copying before the final norm. A difference between them is one of the methods.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from algm_patch import Settings
from algm_patch.cli.options import number_or_rule

from ..common.arguments import layer_and_share, layers_of
from ..common.patching import patched
from ..common.timing import in_turns, seconds
from .ailurus import ailurus
from .elvit import elvit
from .mpm import mpm
from .pitome import pitome
from .resolution import lower_resolution
from .tome import tome, tome_share

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


def tome_share_methods(shares: Iterable[float]) -> list[Method]:
    """Return ToMe with a share of the tokens that are left merged in each layer."""
    return [Method("ToMe, ratio", f"{share:.0%}", partial(tome_share, share=share)) for share in shares]


def pitome_methods(shares: Iterable[float]) -> list[Method]:
    """Return PiToMe with a share of the tokens that are left merged in each layer."""
    return [Method("PiToMe", f"{share:.0%}", partial(pitome, share=share)) for share in shares]


def elvit_methods(points: Iterable[tuple[int, float]]) -> list[Method]:
    """Return ELViT, for each layer that it clusters behind, and the clusters for each token."""
    return [
        Method("ELViT", f"{layer}: {share:.0%}", partial(elvit, layer=layer, share=share)) for layer, share in points
    ]


def ailurus_methods(points: Iterable[tuple[int, float]]) -> list[Method]:
    """Return AiluRus, for each layer that it merges behind, and the share of the tokens that are left."""
    return [
        Method("AiluRus", f"{layer}: {share:.0%}", partial(ailurus, layer=layer, share=share))
        for layer, share in points
    ]


def mpm_methods(layers: Iterable[Sequence[int]]) -> list[Method]:
    """Return MPM, for each list of layers that it merges before."""
    return [Method("MPM", f"layers {listed(each)}", partial(mpm, layers=each)) for each in layers]


def listed(layers: Sequence[int]) -> str:
    """Return layers as text: one after the other, or from first to last if there are more than two in a row."""
    in_a_row = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if in_a_row else ", ".join(map(str, layers))


def resolution_methods(scales: Iterable[float]) -> list[Method]:
    """Return the model as it is, on images with shorter sides."""
    return [Method("lower resolution", f"×{scale:g}", partial(lower_resolution, scale=scale)) for scale in scales]


def pooling_methods(layers: Iterable[int]) -> list[Method]:
    """Return 2x2 pooling in a layer: CLAP with a threshold that every window reaches.

    With proportional attention, which suits it better (CamVid, layer 1: 45.0 mIoU, without it 42.5), and copies.
    """
    return [
        Method(
            "2×2 pooling", f"layer {layer}", partial(patched, clap_layer=layer, gbm_layers=[], tau=-1, restore=False)
        )
        for layer in layers
    ]


def published_methods(taus: Iterable[float] = PUBLISHED_TAUS) -> list[Method]:
    """Return ALGM as its authors run it: constant thresholds, layers 1 and 5, attention without sizes, and copies."""
    layers: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [5], "gbm_tau": "adaptive"}
    fixed = {**layers, "proportional_attention": False}
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


class MethodOption(NamedTuple):
    """Hold an option of the command line that asks for the points of one method.

    Attributes:
        name: with its dashes.
        text: what it asks for.
        metavar, read: what a value is called, and the function that reads it.
        methods: returns the points of these values.
    """

    name: str
    text: str
    metavar: str
    read: Callable[[str], Any]
    methods: Callable[[Sequence[Any]], list[Method]]


OPTIONS = (
    MethodOption("--resolution", "lower resolution: by what to multiply sides", "SCALE", float, resolution_methods),
    MethodOption("--pooling", "2x2 pooling: layers to pool in, one at a time", "LAYER", int, pooling_methods),
    MethodOption("--tome", "ToMe: tokens that merge in each layer", "R", int, tome_methods),
    MethodOption("--tome-ratio", "ToMe: share that merges in each layer", "SHARE", float, tome_share_methods),
    MethodOption("--pitome", "PiToMe: share that merges in each layer", "SHARE", float, pitome_methods),
    MethodOption("--elvit", "ELViT: share left behind a layer", "LAYER:SHARE", layer_and_share, elvit_methods),
    MethodOption("--ailurus", "AiluRus: share left behind a layer", "LAYER:SHARE", layer_and_share, ailurus_methods),
    MethodOption("--mpm", "MPM: layers to merge before, such as 3,6", "LAYERS", layers_of, mpm_methods),
    MethodOption("--published", "ALGM as published, at these thresholds", "TAU", float, published_methods),
    MethodOption("--tau", "ALGM with the defaults, at these thresholds", "TAU", number_or_rule, default_methods),
    MethodOption("--settings", "ALGM tuned: files that Settings.save wrote", "FILE", Path, tuned_methods),
)


def add_method_options(
    parser: argparse.ArgumentParser, defaults: Mapping[str, Sequence[str]], among: Iterable[MethodOption] = OPTIONS
) -> None:
    """Add the options that say which methods are compared.

    Args:
        defaults: by option, its values as they are written on the command line; without any, the method is left out.
        among: the options to add.
    """
    group = parser.add_argument_group("methods (an option without values leaves its method out)")
    for option in among:
        given = defaults.get(option.name, ())
        group.add_argument(
            option.name,
            nargs="*",
            default=[option.read(text) for text in given],
            help=f"{option.text} (default: {' '.join(given)})" if given else option.text,
            type=option.read,
            metavar=option.metavar,
        )


def chosen_methods(options: argparse.Namespace, among: Iterable[MethodOption] = OPTIONS) -> list[Method]:
    """Return the methods that ``add_method_options`` asks for, the unpatched model first."""
    chosen = [option.methods(getattr(options, option.name[2:].replace("-", "_"))) for option in among]
    return [unpatched(), *(method for methods in chosen for method in methods)]
