"""Training with accelerate."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from .common import BATCH, EPOCHS, STEPS, TRAIN, VAL, LinearSegmentor, Patch


def in_accelerate(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
    """Train in a loop of one's own with accelerate's wrappers; a folder for each epoch holds the whole state."""
    model = LinearSegmentor()
    patch(model)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loader = DataLoader(TRAIN, BATCH, shuffle=True)
    prepared, optimizer, loader, val, schedule = accelerator.prepare(
        model, optimizer, loader, DataLoader(VAL, BATCH), schedule
    )
    losses, begin = [], 0
    if resume:
        accelerator.load_state(str(folder / resume))
        begin = int(resume.partition("-")[2])
    for epoch in range(begin, EPOCHS):
        loader.set_epoch(epoch)
        prepared.train()
        for batch in loader:
            loss = cross_entropy(prepared(batch["pixel_values"]), batch["labels"])
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        prepared.eval()
        with torch.no_grad():
            for batch in val:
                prepared(batch["pixel_values"])
        accelerator.save_state(str(folder / f"epoch-{epoch + 1}"))
    return accelerator.unwrap_model(prepared), losses
