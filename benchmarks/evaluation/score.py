"""Score a segmentation model on a data set: mIoU, pixel accuracy, agreement with other predictions, GFLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

from algm_patch.tuning.areas import equal_share, intersection_over_union, mean_iou

from ..common.gflops import counting
from .dataset import Dataset
from .models import SegmentationModel
from .processes import own_rows, own_share, rank, summed
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
        labelled: [N, 3, C] int64 areas of each image's label and prediction, as ``areas_of`` returns them.
        agreement: share of all pixels, labelled or not, that are predicted as in the reference; None without one.
        classes: mean IoU with the reference, over the classes that occur in either; None without one. Agreement hardly
            sees small classes; this weighs each alike.
        compared: [N, 3, C] int64 areas of each image's reference and prediction; None without one.
    """

    miou: float
    accuracy: float
    iou: Tensor
    gflops: float
    confusion: Tensor
    labelled: Tensor
    agreement: float | None = None
    classes: float | None = None
    compared: Tensor | None = None


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
    labelled = confusion.new_zeros(len(dataset), 3, classes)
    compared = torch.zeros_like(labelled)
    flops = 0
    mine = own_share(dataset).pairs
    others = repeat(None, len(mine)) if reference is None else reference
    if isinstance(others, Sized) and len(others) != len(mine):
        raise ValueError(f"reference holds {len(others)} class maps for {len(mine)} images")
    predicted_maps = predict_all(model, dataset, records, progress, title)
    for row, pair, (predicted, cost), other in zip(own_rows(dataset), mine, predicted_maps, others, strict=True):
        predicted = predicted.to(device).long()
        found = confusion_of(predicted, dataset.label(pair).to(device), classes, dataset.ignore_index)
        confusion += found
        labelled[row] = areas_of(found)
        flops += cost
        if other is not None:
            compared[row] = areas_of(confusion_of(predicted, other.to(device).long(), classes))
    if dataset.ignore_index is not None and dataset.ignore_index < classes:
        labelled[..., dataset.ignore_index] = 0  # it is no class, though it may be predicted
    confusion, labelled, compared = (summed(counts).cpu() for counts in (confusion, labelled, compared))
    flops = int(summed(torch.tensor(flops, device=device)))
    iou = intersection_over_union(labelled.sum(0))
    return Result(
        miou=iou.nanmean().item(),
        accuracy=(confusion.trace() / confusion.sum()).item(),
        iou=iou,
        gflops=flops / len(dataset) / 1e9,
        confusion=confusion,
        labelled=labelled,
        agreement=None if reference is None else equal_share(compared.sum(0)).item(),
        classes=None if reference is None else mean_iou(compared.sum(0)).item(),
        compared=None if reference is None else compared,
    )


def confusion_of(predicted: Tensor, target: Tensor, classes: int, ignore_index: int | None = None) -> Tensor:
    """Return the pixels [C, C] of each class of the target (rows) and of the prediction (columns)."""
    return multiclass_confusion_matrix(predicted, target, classes, ignore_index=ignore_index, validate_args=False)


def areas_of(confusion: Tensor) -> Tensor:
    """Return the areas [3, C] that a confusion matrix [C, C] tells: shared, of the rows' map, of the columns' map."""
    return torch.stack([confusion.diag(), confusion.sum(1), confusion.sum(0)])


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
