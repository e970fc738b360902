"""The cheapest settings that keep a model's answers, found by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..apply import apply_algm, remove_algm
from ..core.eval_mode import eval_mode
from ..handle import Algm
from ..patching.naming import class_name
from ..settings.settings import Settings
from ..settings.table import asked
from ..trunks import handle_of
from .bench import Bench
from .budget import Budget, OutOfTime, seconds_of
from .cost import UNITS
from .front import verify_front
from .images import Images, shuffled, single_images
from .judges import predict_dense
from .keeping import check_keep
from .opening import open_bench
from .rivals import measure_rivals
from .search import search


class NothingFoundError(RuntimeError):
    """Tell why a search ended without settings: nothing kept enough, or the budget was too small."""


def tune(
    model: nn.Module,
    images: Images,
    keep: float | Mapping[str, float] = 0.98,
    *,
    predict: Callable[[nn.Module, Tensor], Tensor] | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    cost: str = "gflops",
    budget: str | float = "10min",
    seed: int = 0,
) -> Settings:
    """Find the cheapest layers and thresholds that keep a model's answers, by measurement, and apply them.

    Thresholds come from a part of the images: 8, or half of them if there are fewer than 16. What is kept is measured
    on the others, held back, and settings count as keeping enough if on images like these they do with 95 % confidence:
    if the 5 % quantile of a bootstrap over the images held back is at least ``keep``. With 1 to 3 images there is
    nothing to hold back: the same images tell thresholds and what is kept, without a bound, and the record says so.

    Candidates merge in every block from the first, second, ... to the last but one, each by a share of its proposals,
    and some windows in block 1. One forward pass for each candidate and image tells thresholds, cost and divergence
    (how far the answer is from the unpatched one). For levels from 20 % to 65 % fewer GFLOPs the first block, CLAP's
    share, what is compared, who proposes, and the shares of the layers (toward equal divergence for each GFLOP saved)
    are chosen by divergence at equal cost. Then the levels are measured on the images held back, those around what
    ``keep`` asks for first, and after them Token Merging's schedule and a lower resolution, for comparison.

    If the model is patched already, its other settings (window, proportional attention, ...) stay. ``merge_to`` and
    what ``calibrate`` set give way to the thresholds that are found. A compiled model is measured eagerly (time
    too) and stays compiled.

    Args:
        model: with one ViT, patched or not.
        images: 8 to 64 images without labels, like those that the model will see, as for ``calibrate``: a folder,
            paths, PIL images, tensors. Each is run by itself.
        keep: the least part of the unpatched model's answer to keep; 1 is all of it. A number is meant for the first of
            what is judged. A dict names several, as in ``{"pixels": 0.97, "classes": 0.85}``.
        predict: from the model and images [1, 3, H, W] to class logits [1, classes, h, w] (kept: "pixels", the share
            whose class stays, and "classes", the mean over the classes that occur of the IoU with the unpatched
            prediction), a map of values [1, h, w] or [1, 1, h, w] ("correlation") or tokens [1, L, D] or
            [1, H, W, D] ("cosine", the mean). Return a map that has the shape of the tokens as [1, 1, h, w]. Default:
            a timm ViT's ``forward_features``, any other model's output.
        metric: from the model to a number, the higher the better, such as mIoU on labelled images. It then decides
            instead of the answers, by which the search still goes: kept is its part of the unpatched model's
            ("metric"), without a bound. With keep=1 this is the paper's ALGM* (supplement, §3.5).
        cost: what to save: "gflops" of the ViT, as ``model.algm.gflops`` counts them, over all forward passes of an
            answer; or "time", measured in turns with the unpatched model.
        budget: seconds, or such as "90s", "10min", "1h". When it is over, or after Ctrl-C, the best found so far is
            taken, and the record says that it was cut short.
        seed: of the order of the images. With the same seed, and time enough, the result is the same.

    Returns:
        The settings, applied: the cheapest that keep enough. ``.save(path)`` keeps them. ``.record`` holds the whole
        front and prints as a table; ``.at(gflops=0.5)`` and ``.at(keep=0.97)`` take other settings of it.

    Raises:
        NothingFoundError: if nothing keeps enough, or the budget is too small to run the unpatched model. After this
            and any other error the model is as it was, with the settings that it had.
        ValueError, TypeError: if an argument is out of its range, the model cannot be patched, or its output is not
            dense.
        OSError: if a folder or file is not there, or cannot be read as an image.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
        >>> settings = tune(model, torch.rand(2, 3, 224, 224), keep=0.9, budget="2min")
        >>> settings.record.kept["cosine"] >= 0.9
        True
    """
    if cost not in list(UNITS):
        raise ValueError(f"cost is one of {', '.join(map(repr, UNITS))}; got {cost!r}")
    check_keep(keep)
    seconds = seconds_of(budget)
    shuffled_images = shuffled(single_images(model, images), seed)
    if not shuffled_images:
        raise ValueError("tune got no images. Give 8 to 64, or their folder, like those that the model will see")
    before = settings_before(model)
    countdown = Budget(seconds)
    try:
        with torch.no_grad(), eval_mode(model):
            bench = open_bench(
                model, shuffled_images, keep, predict or predict_dense, metric, UNITS[cost], countdown, before
            )
            measure_all(bench, budget)
        best = bench.best
        if best is None:
            raise NothingFoundError(nothing_found(bench, budget, class_name(model)))
        settings = bench.base.replace(**best.settings, record=bench.record(best))
        apply_algm(model, settings=settings)
        return settings
    except OutOfTime:
        bring_back(model, before)
        raise NothingFoundError(
            f"tune: {budget} was over before the unpatched model had answered {len(shuffled_images)} images. "
            "Give it more time"
        ) from None
    except BaseException:
        bring_back(model, before)
        raise
    finally:
        countdown.close()


def measure_all(bench: Bench, budget: str | float) -> None:
    """Search, verify and compare until all is done, the budget is spent, or the user interrupts.

    What was measured until then is kept, and the record says what ended it.

    Raises:
        KeyboardInterrupt: if nothing that keeps enough was measured until then.
    """
    try:
        verify_front(bench, search(bench))
        measure_rivals(bench)
    except OutOfTime:
        bench.notes.append(f"cut short: {budget} was over")
    except KeyboardInterrupt:
        if bench.best is None:
            raise
        bench.notes.append("cut short: it was interrupted")


def nothing_found(bench: Bench, budget: str | float, name: str) -> str:
    """Return the error for a search without result: what came nearest."""
    if not bench.trials:
        return f"tune: no settings of {name} were measured in {budget}. The model is as it was. Give it more time"
    most = max(bench.trials, key=lambda trial: trial.surely_kept[next(iter(bench.keep))]).surely_kept
    return (
        f"tune: nothing that was tried in {budget} costs less than the unpatched model and surely keeps "
        f"{asked(bench.keep)} of what {name} answers; at most {asked(most)} was. The model is as it was. "
        "Ask for less, or give it more time or more images"
    )


def settings_before(model: nn.Module) -> Settings | None:
    """Return the settings of a patched model; None if it is not patched."""
    is_patched = any(isinstance(vars(part).get("algm"), Algm) for part in model.modules())
    return handle_of(model).settings if is_patched else None


def bring_back(model: nn.Module, before: Settings | None) -> None:
    """Bring a model back to the settings that it had; ``before`` is None if it was not patched.

    The search may have failed before it patched the model.
    """
    if settings_before(model) is None:
        return
    if before is None:
        remove_algm(model)
    else:
        apply_algm(model, settings=before)
