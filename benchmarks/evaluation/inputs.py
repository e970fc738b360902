"""Choose images of a data set as input of a network, to time it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from .dataset import DataError, Dataset
from .models import SegmentationModel
from .weights import ModelError


def network_inputs(model: SegmentationModel, dataset: Dataset, count: int) -> Tensor:
    """Return evenly spaced images [count, 3, h, w] as the network is given them at once.

    Of a sliding window that is one window, in the middle of each image.

    Raises:
        DataError, ModelError: if there are too few images, or they have different sizes.
    """
    if len(dataset) < count:
        raise DataError(f"{dataset.name} has {len(dataset)} images, {count} are to be measured. Take a smaller --batch")
    pairs = [dataset.pairs[i * len(dataset) // count] for i in range(count)]
    images = [model.preprocess(dataset.image(pair)) for pair in pairs]
    if model.window is not None:
        images = [center_crop(image, [model.window]) for image in images]
    shapes = {tuple(image.shape[2:]) for image in images}
    if len(shapes) > 1:
        raise ModelError(f"images come out in {len(shapes)} sizes, which make no batch. Give --size HEIGHT WIDTH")
    return torch.cat(images)
