"""Training by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from .common import BATCH, EPOCHS, TRAIN, VAL, LinearSegmentor, Patch


class LightningSegmentor(lightning.LightningModule):
    """Train a model by cross entropy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def on_train_batch_start(self, batch: dict[str, Tensor], index: int) -> None:
        torch.manual_seed(self.global_step)  # Lightning's checkpoints do not hold the generator's state

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = cross_entropy(self.model(batch["pixel_values"]), batch["labels"])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", cross_entropy(self.model(batch["pixel_values"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def in_lightning(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
    """Train in a Trainer of Lightning."""
    model = LinearSegmentor()
    patch(model)
    module = LightningSegmentor(model)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[ModelCheckpoint(folder, "{epoch}", every_n_epochs=EPOCHS // 2, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TRAIN, BATCH), DataLoader(VAL, BATCH), ckpt_path=resume and str(folder / resume))
    return model, module.losses
