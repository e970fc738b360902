"""One line in training scripts that exist: plain PyTorch, transformers' Trainer, Lightning, accelerate, mmengine.

    python examples/training_loops.py [plain trainer-beit trainer-dpt lightning accelerate mmengine]

Each function below is such a script: it builds, trains and evaluates a model in its library's own loop, leaves its
checkpoints, and resumes from them. ALGM is the line ``patch(model)`` and nothing else; ``main`` says what it is. In
training all images of a batch merge the same number of tokens, in evaluation each merges by its own content: the patch
follows ``model.train()`` and ``model.eval()``, which all these loops call. Checkpoints are those of an unpatched model.

The images are rectangles whose colours are the classes, small enough to see the loss fall within a minute.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
import transformers
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.utils.data import DataLoader

from algm_patch import apply_algm

Patch = Callable[[nn.Module], Any]
SIDE, PATCH, CLASSES, BATCH, EPOCHS = 64, 8, 4, 4, 8
STEPS = 4 * EPOCHS
HALF = STEPS // 2
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
HUGGINGFACE = {"image_size": SIDE, "patch_size": PATCH, "num_labels": CLASSES, **SIZES}


class Rectangles(list[dict[str, Tensor]]):
    """Images of coloured rectangles on a flat background; the label of a pixel is its colour's number."""

    def __init__(self, images: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        colours = torch.tensor([[-1.0, -1, 0], [1, -1, 1], [-1, 1, 1], [1, 1, -1]])
        for _ in range(images):
            labels = torch.zeros(SIDE, SIDE, dtype=torch.int64)
            for colour in torch.randint(1, CLASSES, (4,), generator=generator):
                top, left, height, width = torch.randint(4, SIDE // 2, (4,), generator=generator)
                labels[top : top + height, left : left + width] = colour
            image = colours[labels].permute(2, 0, 1)
            noise = 0.1 * torch.randn(3, SIDE, SIDE, generator=generator)
            self.append({"pixel_values": image + noise, "labels": labels})


TRAIN, VAL = Rectangles(4 * BATCH, seed=0), Rectangles(BATCH, seed=1)


class LinearSegmentor(nn.Module):
    """timm's ViT and a linear layer on its tokens."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 2}
        self.vit = timm.create_model("vit_tiny_patch16_224", **shape, num_classes=0, drop_path_rate=0.1)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :]
        return interpolate(self.head(tokens).mT.unflatten(2, (SIDE // PATCH, -1)), images.shape[2:], mode="bilinear")


# -- the scripts: each builds, trains and evaluates a model, leaves checkpoints, and returns model and losses


def plain_pytorch(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
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


def load_pretrained(model: nn.Module, place: Path) -> None:
    source, found = type(model).from_pretrained(place, output_loading_info=True)
    assert not any(found.values())
    model.load_state_dict(source.state_dict())  # whose memory, mapped from the file, lies such that last bits change


def huggingface(build: Callable[[], nn.Module], again: bool = False) -> Callable[..., tuple[nn.Module, list[float]]]:
    """Of a Trainer that resumes a model built anew, or one read ``again`` by itself from the checkpoint."""

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
    config = transformers.BeitConfig(
        **HUGGINGFACE,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        use_relative_position_bias=True,
        auxiliary_channels=32,
    )
    return transformers.BeitForSemanticSegmentation(config)


def dpt() -> nn.Module:
    config = transformers.DPTConfig(
        **HUGGINGFACE, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16] * 4, fusion_hidden_size=16
    )
    return transformers.DPTForSemanticSegmentation(config)


class LightningSegmentor(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.losses: list[float] = []

    def on_train_batch_start(self, batch: dict[str, Tensor], index: int) -> None:
        torch.manual_seed(self.global_step)  # Lightning's checkpoints leave out the state of the generator

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss = cross_entropy(self.model(batch["pixel_values"]), batch["labels"])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", cross_entropy(self.model(batch["pixel_values"]), batch["labels"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def in_lightning(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
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


def in_accelerate(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
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


class Samples(list[dict[str, Any]]):
    """Of a data set, what mmsegmentation's pipelines leave."""

    def __init__(self, data: Rectangles) -> None:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        self.metainfo = {"classes": [str(number) for number in range(CLASSES)]}
        for sample in data:
            shapes = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), (SIDE, SIDE))
            truth = SegDataSample(gt_sem_seg=PixelData(data=sample["labels"][None]), metainfo=shapes)
            self.append({"inputs": sample["pixel_values"], "data_samples": truth})


def linear_encoder_decoder() -> nn.Module:
    from mmengine import ConfigDict
    from mmengine.registry import init_default_scope
    from mmseg.models import build_segmentor

    init_default_scope("mmseg")
    shape = {"img_size": SIDE, "patch_size": PATCH, "embed_dims": 32, "num_layers": 3, "num_heads": 2}
    head = {"num_convs": 0, "concat_input": False, "in_channels": 32, "channels": 32, "num_classes": CLASSES}
    config = {
        "type": "EncoderDecoder",
        "data_preprocessor": {"type": "SegDataPreProcessor", "size": (SIDE, SIDE)},
        "backbone": {"type": "VisionTransformer", **shape},
        "decode_head": {"type": "FCNHead", **head, "dropout_ratio": 0},  # nor does mmengine keep the generator's state
        "test_cfg": {"mode": "whole"},
    }
    return build_segmentor(ConfigDict(config))


def mmengine_runner(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
    from mmengine.runner import Runner

    model = linear_encoder_decoder()
    patch(model)
    loader = {"batch_size": BATCH, "num_workers": 0, "collate_fn": {"type": "pseudo_collate"}}
    runner = Runner(
        model,
        work_dir=str(folder),
        train_dataloader={"dataset": Samples(TRAIN), "sampler": {"type": "InfiniteSampler"}, **loader},
        val_dataloader={"dataset": Samples(VAL), "sampler": {"type": "DefaultSampler", "shuffle": False}, **loader},
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": STEPS, "val_interval": HALF},
        val_cfg={},
        val_evaluator={"type": "IoUMetric"},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 3e-3}},
        param_scheduler={"type": "PolyLR", "power": 0.9, "by_epoch": False, "end": STEPS},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": HALF, "by_epoch": False}},
        randomness={"seed": 0},
        load_from=resume and str(folder / resume),
        resume=bool(resume),
        default_scope="mmseg",
        experiment_name=folder.name,
        log_level="WARNING",
    )
    runner.train()
    return model, runner.message_hub.get_scalar("train/loss").data[0].tolist()


SCRIPTS: dict[str, Callable[..., tuple[nn.Module, list[float]]]] = {
    "plain": plain_pytorch,
    # transformers gives BEiT's weights the names of its first releases, which Trainer then does not find (its #43701).
    "trainer-beit": huggingface(beit, again=True),
    "trainer-dpt": huggingface(dpt),
    "lightning": in_lightning,
    "accelerate": in_accelerate,
    "mmengine": mmengine_runner,
}


def main(names: list[str]) -> None:
    def patch(model: nn.Module) -> None:
        apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.9)

    for name in names or SCRIPTS:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            model, losses = SCRIPTS[name](patch, Path(folder))
        print(
            f"{name}: loss {losses[0]:.2f} to {losses[-1]:.2f}; tokens after each layer {model.algm.tokens_per_layer}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
