"""Training by the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import transformers
from torch import nn

from .common import BATCH, CLASSES, HALF, PATCH, SIDE, STEPS, TRAIN, VAL, Patch, Script

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
HUGGINGFACE = {"image_size": SIDE, "patch_size": PATCH, "num_labels": CLASSES, **SIZES}


def load_pretrained(model: nn.Module, place: Path) -> None:
    """Load the weights of a checkpoint by ``from_pretrained``."""
    source, found = type(model).from_pretrained(place, output_loading_info=True)
    assert not any(found.values())
    # Copied: in memory that is mapped from the file the weights are aligned otherwise, which changes last bits.
    model.load_state_dict(source.state_dict())


def huggingface(build: Callable[[], nn.Module], again: bool = False) -> Script:
    """Return a script that trains a model in a Trainer.

    Args:
        again: on resume, read the checkpoint's weights by ``from_pretrained`` before Trainer does.
    """

    def script(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
        model = build()
        if resume and again:
            load_pretrained(model, folder / resume)
        patch(model)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=HALF,
            save_steps=HALF,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=TRAIN, eval_dataset=VAL)
        trainer.train(resume_from_checkpoint=resume and str(folder / resume))
        return model, [log["loss"] for log in trainer.state.log_history if "loss" in log]

    return script


def beit() -> nn.Module:
    """Return BEiT with UperNet, with random weights."""
    config = transformers.BeitConfig(
        **HUGGINGFACE,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        use_relative_position_bias=True,
        auxiliary_channels=32,
    )
    return transformers.BeitForSemanticSegmentation(config)


def dpt() -> nn.Module:
    """Return DPT, with random weights."""
    config = transformers.DPTConfig(
        **HUGGINGFACE, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16
    )
    return transformers.DPTForSemanticSegmentation(config)
