"""The images of a data set, from whatever holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..images.named import named_images
from ..images.prepare import prepare
from ..patching.find_vit import find_vits

# A folder, or what yields images one by one or in batches.
Images = str | PathLike[str] | Tensor | Iterable[Any]


def image_batches(model: nn.Module, images: Images) -> Iterator[Tensor]:
    """Yield batches [B, 3, H, W] on the model's device and in its dtype; skip empty batches.

    Args:
        images: as for ``algm_patch.calibrate``.

    Raises:
        TypeError: if an item holds no image.
        ValueError, OSError: as `named_images`.
    """
    trunk = next(iter(find_vits(model).values()))[0]
    for _, item in named_images([images] if isinstance(images, (Tensor, Mapping)) else images):
        is_picture = hasattr(item, "convert") or isinstance(item, np.ndarray)
        batch = prepare(model, item, trunk)[0] if is_picture else first_tensor(item)
        if batch.shape[0] == 0:
            continue
        parameter = next(model.parameters(), batch)
        yield (batch if batch.dim() == 4 else batch[None]).to(parameter.device, parameter.dtype)


def first_tensor(item: Any) -> Tensor:
    """Return a tensor as it is, or the first one in a tuple, list or dict.

    Raises:
        TypeError: if there is none.
    """
    if isinstance(item, Tensor):
        return item
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, (tuple, list)) else ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise TypeError(
        "an item of images is no image: algm_patch expects paths, PIL images, uint8 arrays [H, W, 3], and tensors, "
        f"alone or first in a tuple, list or dict; got {type(item)}"
    )


def single_images(model: nn.Module, images: Images) -> list[Tensor]:
    """Return the images [1, 3, H, W] one by one, on the model's device and in its dtype.

    Raises:
        TypeError, ValueError, OSError: as `image_batches`.
    """
    return [image for batch in image_batches(model, images) for image in batch.split(1)]


def shuffled(images: list[Tensor], seed: int) -> list[Tensor]:
    """Return the images in a random order, the same for the same seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [images[index] for index in order.tolist()]
