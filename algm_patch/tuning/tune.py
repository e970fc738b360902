"""The fastest settings that keep the answer, found by measurement."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import apply_algm, remove_algm
from ..core.eval_mode import eval_mode
from ..handle import Algm, handle_of
from ..patching.find_vit import class_name
from ..settings.settings import Settings
from .calibrate import image_batches
from .judges import predict_dense
from .measure import UNITS, Bench, OutOfTime
from .search import search


def tune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    keep: float = 0.98,
    *,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    cost: str = "gflops",
    budget: str | float = "10min",
    seed: int = 0,
) -> Settings:
    """Find, by measurement, the cheapest layers and thresholds that keep a model's answers, and apply them.

    Candidates are the layer of CLAP, its threshold for the data set, the layers of GBM, their thresholds, and whether
    tokens are compared themselves or by their keys. From a few common arrangements on, one thing at a time is changed
    and the thresholds are bracketed anew, until nothing is cheaper or the time is up. A candidate is given up as soon
    as a few images show that it keeps too little or saves too little. If the model is patched already, its other
    settings (window, proportional attention, ...) stay, but for ``merge_to`` and what :func:`calibrate` set, in whose
    place come the thresholds that are found. A compiled model is measured eagerly, also its time, and stays compiled.

    Args:
        model: with one ViT, patched or not.
        images: 8 to 64 as the model takes them, without labels, like those it will see: as for :func:`calibrate`.
            Each is run by itself.
        keep: at least this much of the unpatched model's answer: 1 is all.
        predict: from the model and images [1, 3, H, W] to class logits [1, classes, h, w] (kept: the share of pixels
            whose class stays), a map of values [1, h, w] or [1, 1, h, w] (its correlation) or tokens [1, L, D] or
            [1, H, W, D] (mean cosine); return a map of the tokens' own shape as [1, 1, h, w]. Default: a timm ViT's
            ``forward_features``, any other model's output.
        metric: from the model to a number, the higher the better, such as mIoU on labelled images. Then this decides:
            kept is its share of the unpatched model's. With keep=1 this is the paper's ALGM* (supplement, §3.5).
        cost: what is saved: "gflops" of the ViT, as ``model.algm.gflops`` counts them, over all forward passes of an
            answer; or "time", measured in turns with the unpatched model.
        budget: seconds, or such as "90s", "10min", "1h"; then the best found so far is taken.
        seed: of the order of the images. With the same seed, and time enough, the result is the same.

    Returns:
        The settings, applied. ``.save(path)`` keeps them, and
        ``.record`` says how they were found, and prints as a table.

    Raises:
        RuntimeError: if nothing keeps so much. The model is then unpatched. After any other error it is as it was.
        ValueError, TypeError: if an argument is out of its range, or the model's output is not dense.

    >>> import timm, torch
    >>> model = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
    >>> settings = tune(model, torch.rand(2, 3, 224, 224), keep=0.9, budget="20s")
    >>> settings.record.kept >= 0.9
    True
    """
    if cost not in list(UNITS):
        raise ValueError(f"cost is one of {', '.join(map(repr, UNITS))}; got {cost!r}")
    if not isinstance(keep, Real) or not 0 < keep <= 1:
        raise ValueError(f"keep is the part of the answer to keep, above 0 and at most 1; got {keep!r}")
    pictures = shuffled(single_images(images, model), seed)
    before = settings_before(model)
    bench = Bench(model, pictures, keep, predict or predict_dense, metric, cost, seconds(budget))
    try:
        with torch.no_grad(), eval_mode(model):
            bench.begin(before)
            search(bench)
        if bench.best is not None:
            settings = bench.base.replace(**bench.best.settings, record=bench.record(bench.best))
            apply_algm(model, settings=settings)
            return settings
    except OutOfTime:
        restore(model, before)
        raise RuntimeError(
            f"tune: {budget} was over before the unpatched model had answered {len(pictures)} images. Give it more time"
        ) from None
    except BaseException:
        restore(model, before)
        raise
    finally:
        bench.progress.close()
    remove_algm(model)
    raise RuntimeError(
        f"tune: nothing that was tried in {budget} keeps {keep} of what {class_name(model)} answers "
        f"({bench.judged}). It is unpatched now. Ask for less, or give it more time"
    )


def single_images(images: Tensor | Iterable[Any], model: nn.Module) -> list[Tensor]:
    """[1, 3, H, W] each, where the model is and in its dtype."""
    pictures = [image for batch in image_batches(model, images) for image in batch.split(1)]
    if not pictures:
        raise ValueError("tune got no images. Give 8 to 64, like those that the model will see")
    return pictures


def shuffled(pictures: list[Tensor], seed: int) -> list[Tensor]:
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))
    return [pictures[index] for index in order.tolist()]


def seconds(budget: str | float) -> float:
    """Return the seconds of "90s", "10min", "1h", or a number of seconds as it is."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(s|min|h)\s*", budget) if isinstance(budget, str) else None
    value = float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]] if match else budget
    if not isinstance(value, Real) or not 0 < value < math.inf:
        raise ValueError(f"budget is a number of seconds, or such as '90s', '10min' or '1h'; got {budget!r}")
    return float(value)


def settings_before(model: nn.Module) -> Settings | None:
    return (
        handle_of(model).settings if any(isinstance(vars(part).get("algm"), Algm) for part in model.modules()) else None
    )


def restore(model: nn.Module, before: Settings | None) -> None:
    """As before :func:`tune`, or before its :meth:`Bench.begin`, which may have failed to patch."""
    if settings_before(model) is not None:
        if before is None:
            remove_algm(model)
        else:
            apply_algm(model, settings=before)
