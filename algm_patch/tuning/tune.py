"""The cheapest settings that keep a model's answers, found by measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..apply import apply_algm, remove_algm
from ..core.eval_mode import eval_mode
from ..handle import Algm
from ..patching.naming import class_name
from ..settings.settings import Settings
from ..trunks import handle_of
from .budget import Budget, OutOfTime, seconds_of
from .cost import UNITS
from .images import shuffled, single_images
from .judges import predict_dense
from .keeping import check_keep
from .measure import open_bench
from .search import search


def tune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    keep: float | Mapping[str, float] = 0.98,
    *,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    cost: str = "gflops",
    budget: str | float = "10min",
    seed: int = 0,
) -> Settings:
    """Find the cheapest layers and thresholds that keep a model's answers, by measurement, and apply them.

    Candidates differ in the layer of CLAP and its threshold for the data set, the layers of GBM and their thresholds,
    and whether tokens are compared themselves or by their keys. The search begins with a few common arrangements. It
    changes one thing at a time and brackets the thresholds anew, until nothing is cheaper or the time is up. A
    candidate is given up as soon as a few images show that it keeps too little or saves too little.

    If the model is patched already, its other settings (window, proportional attention, ...) stay. ``merge_to`` and
    what ``calibrate`` set give way to the thresholds that are found. A compiled model is measured eagerly (time
    too) and stays compiled.

    Args:
        model: with one ViT, patched or not.
        images: 8 to 64 images without labels, like those that the model will see, as for ``calibrate``. Each is
            run by itself.
        keep: the least part of the unpatched model's answer to keep; 1 is all of it.
        predict: from the model and images [1, 3, H, W] to class logits [1, classes, h, w] (kept: the share of pixels
            whose class stays), a map of values [1, h, w] or [1, 1, h, w] (its correlation) or tokens [1, L, D] or
            [1, H, W, D] (mean cosine). Return a map that has the shape of the tokens as [1, 1, h, w]. Default: a timm
            ViT's ``forward_features``, any other model's output.
        metric: from the model to a number, the higher the better, such as mIoU on labelled images. It then decides
            instead of ``predict``: kept is its part of the unpatched model's. With keep=1 this is the paper's ALGM*
            (supplement, §3.5).
        cost: what to save: "gflops" of the ViT, as ``model.algm.gflops`` counts them, over all forward passes of an
            answer; or "time", measured in turns with the unpatched model.
        budget: seconds, or such as "90s", "10min", "1h". When it is over, the best found so far is taken.
        seed: of the order of the images. With the same seed, and time enough, the result is the same.

    Returns:
        The settings, applied. ``.save(path)`` keeps them; ``.record`` tells how they were found and prints as a table.

    Raises:
        RuntimeError: if nothing keeps enough: the model is then unpatched. Or if the budget is too small to run the
            unpatched model. After this and any other error the model is as it was.
        ValueError, TypeError: if an argument is out of its range, or the model's output is not dense.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
        >>> settings = tune(model, torch.rand(2, 3, 224, 224), keep=0.9, budget="20s")
        >>> settings.record.kept["cosine"] >= 0.9
        True
    """
    if cost not in list(UNITS):
        raise ValueError(f"cost is one of {', '.join(map(repr, UNITS))}; got {cost!r}")
    check_keep(keep)
    seconds = seconds_of(budget)
    shuffled_images = shuffled(single_images(model, images), seed)
    if not shuffled_images:
        raise ValueError("tune got no images. Give 8 to 64, like those that the model will see")
    before = settings_before(model)
    countdown = Budget(seconds)
    try:
        with torch.no_grad(), eval_mode(model):
            bench = open_bench(
                model, shuffled_images, keep, predict or predict_dense, metric, UNITS[cost], countdown, before
            )
            search(bench)
        if bench.best is not None:
            settings = bench.base.replace(**bench.best.settings, record=bench.record(bench.best))
            apply_algm(model, settings=settings)
            return settings
    except OutOfTime:
        restore(model, before)
        raise RuntimeError(
            f"tune: {budget} was over before the unpatched model had answered {len(shuffled_images)} images. "
            "Give it more time"
        ) from None
    except BaseException:
        restore(model, before)
        raise
    finally:
        countdown.close()
    remove_algm(model)
    raise RuntimeError(
        f"tune: nothing that was tried in {budget} keeps {keep} of what {class_name(model)} answers "
        f"({', '.join(bench.reference.names)}). It is unpatched now. Ask for less, or give it more time"
    )


def settings_before(model: nn.Module) -> Settings | None:
    """Return the settings of a patched model; None if it is not patched."""
    is_patched = any(isinstance(vars(part).get("algm"), Algm) for part in model.modules())
    return handle_of(model).settings if is_patched else None


def restore(model: nn.Module, before: Settings | None) -> None:
    """Bring a model back to the settings that it had; ``before`` is None if it was not patched.

    The search may have failed before it patched the model.
    """
    if settings_before(model) is None:
        return
    if before is None:
        remove_algm(model)
    else:
        apply_algm(model, settings=before)
