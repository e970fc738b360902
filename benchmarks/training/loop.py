"""Run the steps of an epoch."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from tqdm import tqdm

from .images import IGNORED
from .options import RunError


def run_epoch(
    accelerator: Accelerator, model: nn.Module, loader: Any, optimizer: Any, schedule: Any, title: str, step: int
) -> float:
    """Train for an epoch; return the mean loss over this process's batches.

    Args:
        step: how many steps went before.
    """
    model.train()
    total = 0.0
    bar = tqdm(loader, title, unit="batch", disable=not accelerator.is_main_process)
    for images, labels in bar:
        with accelerator.accumulate(model):
            loss = mean_loss(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if not math.isfinite(value := loss.item()):
            raise RunError(f"the loss is {value} in {title}. Lower --lr, or train with --precision no")
        total += value
        if accelerator.sync_gradients:
            step += 1
            accelerator.log({"loss": value, "learning rate": schedule.get_last_lr()[0]}, step=step)
            schedule.step()
        bar.set_postfix(loss=f"{value:.3f}")
    return total / len(loader)


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [B, C, h, w] with labels [B, H, W]; 0 if all are ignored."""
    logits = interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    total = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return the optimizer of the parameters that are trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":  # Segmenter's
        return torch.optim.SGD(trained, options.lr or 1e-3, momentum=0.9, weight_decay=options.weight_decay)
    return torch.optim.AdamW(trained, options.lr or 1e-4, weight_decay=options.weight_decay)
