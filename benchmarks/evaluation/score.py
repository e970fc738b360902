"""Score a segmentation model on a data set: mIoU, pixel accuracy, agreement, GFLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from ..common.gflops import counting
from .dataset import Dataset
from .models import SegmentationModel
from .processes import own_share, rank, summed
from .records import fingerprint, read_record, record_path, write_record
from .weights import ModelError


@dataclass(frozen=True)
class Result:
    """Hold the score of a model on a data set.

    Attributes:
        miou: mean over the classes that occur in labels or predictions, in [0, 1].
        accuracy: share of the labelled pixels that are right.
        iou: [C]; NaN for classes that do not occur.
        gflops: of the ViT, for an image, on average.
        confusion: [C, C] int64 pixels, label by prediction.
        agreement: share of all pixels, labelled or not, that are predicted as in the reference; None without one.
    """

    miou: float
    accuracy: float
    iou: Tensor
    gflops: float
    confusion: Tensor
    agreement: float | None = None


def evaluate(
    model: SegmentationModel,
    dataset: Dataset,
    *,
    reference: Iterable[Tensor] | None = None,
    records: Path | None = None,
    progress: bool = True,
    title: str = "evaluating",
) -> Result:
    """Measure a model on a data set.

    In a process group each process takes its share of the images, and all return the result of the whole.

    Args:
        reference: class maps to compare with, one for each image, as ``predictions`` yields them.
        records, progress, title: see ``predictions``.

    Raises:
        ModelError: if model and data set differ in their classes.
        ValueError: if the reference has another number of images.
    """
    check_classes(model, dataset)
    device = next(model.parameters()).device
    classes = len(dataset.classes)
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    flops, same, pixels = 0, 0, 0
    mine = own_share(dataset).pairs
    others = repeat(None, len(mine)) if reference is None else reference
    if isinstance(others, Sized) and len(others) != len(mine):
        raise ValueError(f"reference holds {len(others)} class maps for {len(mine)} images")
    predicted_maps = predict_all(model, dataset, records, progress, title)
    for pair, (predicted, cost), other in zip(mine, predicted_maps, others, strict=True):
        confusion += multiclass_confusion_matrix(
            predicted.to(device).long(),
            dataset.label(pair).to(device),
            classes,
            ignore_index=dataset.ignore_index,
            validate_args=False,
        )
        flops += cost
        if other is not None:
            same += int((other == predicted).sum())
            pixels += predicted.numel()
    confusion = summed(confusion).cpu()
    flops, same, pixels = summed(torch.tensor([flops, same, pixels], device=device)).tolist()
    iou = intersection_over_union(confusion, dataset.ignore_index)
    return Result(
        miou=iou.nanmean().item(),
        accuracy=(confusion.trace() / confusion.sum()).item(),
        iou=iou,
        gflops=flops / len(dataset) / 1e9,
        confusion=confusion,
        agreement=None if reference is None else same / pixels,
    )


def predictions(
    model: SegmentationModel,
    dataset: Dataset,
    *,
    records: Path | None = None,
    progress: bool = True,
    title: str = "predicting",
) -> Iterator[Tensor]:
    """Yield class maps [H, W] uint8 on the CPU, at the size of the labels, of this process's share of the images.

    Args:
        records: a folder where each prediction is kept as a PNG, and found again if model, settings and image are the
            same. None: nothing is kept.
        progress: show a bar, with this ``title``.
    """
    return (predicted for predicted, _ in predict_all(model, dataset, records, progress, title))


def predict_all(
    model: SegmentationModel, dataset: Dataset, records: Path | None, progress: bool, title: str
) -> Iterator[tuple[Tensor, int]]:
    """Yield the class map of each image of this process's share, and the operations that it cost."""
    if any(part.training for part in model.modules()):
        raise ValueError(f"{model.name} is in training mode, in which it predicts otherwise. Call model.eval()")
    folder = None if records is None else records / fingerprint(model)
    mine = own_share(dataset)
    done = 0 if folder is None else sum(record_path(folder, pair).is_file() for pair in mine.pairs)
    bar = tqdm(mine.pairs, title, unit="image", disable=not progress or rank() > 0)
    if done:
        bar.set_postfix_str(f"{done} from {folder}")
    for pair in bar:
        path = None if folder is None else record_path(folder, pair)
        if path is not None and path.is_file():
            yield read_record(path)
            continue
        with counting(model) as count:
            logits = model.predict(dataset.image(pair), pair.size)
        predicted = logits.argmax(0).to(torch.uint8).cpu()
        if path is not None:
            write_record(path, predicted, count.operations)
        yield predicted, count.operations


def check_classes(model: SegmentationModel, dataset: Dataset) -> None:
    """Raise ModelError if model and data set differ in their classes."""
    if model.classes != len(dataset.classes):
        hint = " Does a label mean 'ignore'?" if len(dataset.classes) > model.classes else ""
        raise ModelError(
            f"{model.name} knows {model.classes} classes, {dataset.name} has {len(dataset.classes)} "
            f"({dataset.classes[0]} to {dataset.classes[-1]}).{hint} A folder's classes are those of its classes.txt, "
            "or as many as its labels hold"
        )


def intersection_over_union(confusion: Tensor, ignore_index: int | None) -> Tensor:
    """Return [C] float64; NaN where a class is in neither labels nor predictions, and for an ignored class."""
    hits = confusion.diag().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    if ignore_index is not None and ignore_index < len(iou):
        iou[ignore_index] = torch.nan
    return iou
