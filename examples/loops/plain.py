"""Training in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from .common import BATCH, EPOCHS, TRAIN, VAL, LinearSegmentor, Patch


def plain_pytorch(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
    """Train with a loop of one's own; a folder for each epoch holds weights and state."""
    model = LinearSegmentor()
    patch(model)
    optimizer, losses, begin = torch.optim.AdamW(model.parameters(), lr=3e-3), [], 0
    order = torch.Generator().manual_seed(0)
    if resume:
        model.load_state_dict(load_file(folder / resume / "model.safetensors"))
        state = torch.load(folder / resume / "training.pt")
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        torch.set_rng_state(state["rng"])
        begin = state["epoch"]
    for epoch in range(begin, EPOCHS):
        model.train()
        for batch in DataLoader(TRAIN, BATCH, shuffle=True, generator=order):
            loss = cross_entropy(model(batch["pixel_values"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            for batch in DataLoader(VAL, BATCH):
                model(batch["pixel_values"])
        place = folder / f"epoch-{epoch + 1}"
        place.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), place / "model.safetensors")
        state = {"optimizer": optimizer.state_dict(), "order": order.get_state(), "rng": torch.get_rng_state()}
        torch.save({**state, "epoch": epoch + 1}, place / "training.pt")
    return model, losses
