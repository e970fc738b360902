"""Define methods that cost equally many FLOPs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from algm_patch.tuning.probe import similarities

from ..common.patching import patched
from ..evaluation.methods import Method, unpatched
from ..evaluation.tome import tome
from .networks import Network, patches_left, tome_r

UNPATCHED, FIXED, PLAIN, THRESHOLDS, TOME = "unpatched", "fixed counts", "fixed, plain", "thresholds", "ToMe"
METHODS = (UNPATCHED, FIXED, PLAIN, THRESHOLDS, TOME)


def equal_method(name: str, model: Any, network: Network, images: Tensor) -> Method:
    """Return a method by name, with counts or thresholds for these images."""
    if name == UNPATCHED:
        return unpatched()
    if name == TOME:
        r = tome_r(model, network)
        return Method(name, f"r={r}", partial(tome, r=r))
    left = patches_left(model, network)
    if name == THRESHOLDS:
        settings = thresholds(model, network, images, left)
        return Method(name, "τ={tau:.4f}, {gbm_tau:.4f}".format(**settings), partial(patched, **settings))
    patch = partial(patched, merge_to=list(left), gbm_layers=[network.gbm_layer], proportional_attention=name == FIXED)
    return Method(name, " -> ".join(map(str, (model.patch_embed.num_patches, *left))), patch)


def thresholds(model: Any, network: Network, images: Tensor, left: tuple[int, int]) -> dict[str, Any]:
    """Return settings with thresholds that as many windows and proposals of all images reach as fixed counts merge."""
    layer, run = network.gbm_layer, partial(model, images)
    with patched(model, gbm_layers=[]):
        (windows,) = similarities(model, "CLAP", [1], run)
    tau = reached_by(windows, (model.patch_embed.num_patches - left[0]) // 3 * len(images))
    with patched(model, gbm_layers=[layer], tau=tau):
        (proposals,) = similarities(model, "GBM", [layer], run)
    gbm_tau = reached_by(proposals, (left[0] - left[1]) * len(images))
    return {"gbm_layers": [layer], "tau": tau, "gbm_tau": gbm_tau}


def reached_by(similarity: Tensor, number: int) -> float:
    """Return the threshold that ``number`` of similarities [K] reach, half way to the next one."""
    return similarity.sort(descending=True).values[number - 1 : number + 1].mean().item() if number else 2.0
