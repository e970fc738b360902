"""Make the network that is trained, and try it out before an epoch is spent on it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from algm_patch import Settings

from ..common.patching import patched
from ..evaluation import checkpoints
from ..evaluation.dense import HEADS, dense_model
from ..evaluation.loading import backbone
from ..evaluation.models import SegmentationModel
from ..evaluation.weights import ModelError, load_strictly, read_tensors

BLOCKS = (nn.ModuleList, nn.Sequential)  # a trunk's blocks are the longest of these in it


def make_model(options: argparse.Namespace, classes: int) -> SegmentationModel:
    """Return a trained trunk with a head, the parts that stay as they are frozen.

    Raises:
        ModelError: if a checkpoint is not there or does not fit.
    """
    spec, head = options.model, options.head
    if options.weights is not None and not spec.startswith("timm:"):
        raise ModelError(f"weights={options.weights} are those of a timm:NAME, {spec} has its own")
    height, width = options.size
    trunk = backbone(spec, options.weights, (height, width))
    model = dense_model(spec, trunk, head if head in HEADS else "linear", classes, (height, width))
    if head not in HEADS:
        load_strictly(model.network.head, read_tensors(Path(head)), Path(head))
    if options.start:
        checkpoints.load_weights(model, options.start)
    if options.blocks is not None:
        train_last_blocks(trunk, options.blocks)
    return model


def train_last_blocks(trunk: nn.Module, count: int) -> None:
    """Freeze a trunk but for its last blocks."""
    blocks = list(max((part for part in trunk.modules() if isinstance(part, BLOCKS)), key=len))
    if not 0 <= count <= len(blocks):
        raise ModelError(f"--blocks {count}: expected 0 (the head alone) to {len(blocks)}, all that the trunk has")
    trunk.requires_grad_(False)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)


def try_out(model: SegmentationModel, settings: Settings | None) -> None:
    """Raise ModelError now if the network does not take its images or ALGM does not fit it.

    Parameters that no logit depends on, such as mask tokens of a pretraining, are frozen: in several processes every
    step would wait for their gradients.
    """
    assert isinstance(model.size, tuple)
    images = torch.zeros(1, 3, *model.size, device=next(model.parameters()).device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        gradients = torch.autograd.grad(model.eval()(images).sum(), trained, allow_unused=True)
        with nullcontext() if settings is None else patched(model, settings), torch.no_grad():
            model(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{model.name} cannot be run at {model.size[0]}x{model.size[1]} pixels: {error}") from error
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
