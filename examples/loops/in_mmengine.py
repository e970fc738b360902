"""Training by the Runner of mmengine, with a network of mmsegmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .common import BATCH, CLASSES, HALF, PATCH, SIDE, STEPS, TRAIN, VAL, Patch, Rectangles


class Samples(list[dict[str, Any]]):
    """Hold a data set as mmsegmentation's pipelines leave it."""

    def __init__(self, data: Rectangles) -> None:
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        self.metainfo = {"classes": [str(number) for number in range(CLASSES)]}
        for sample in data:
            shapes = dict.fromkeys(("ori_shape", "img_shape", "pad_shape"), (SIDE, SIDE))
            truth = SegDataSample(gt_sem_seg=PixelData(data=sample["labels"][None]), metainfo=shapes)
            self.append({"inputs": sample["pixel_values"], "data_samples": truth})


def linear_encoder_decoder() -> nn.Module:
    """Return mmsegmentation's ViT with a linear head, with random weights."""
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
        "decode_head": {"type": "FCNHead", **head, "dropout_ratio": 0},  # mmengine does not save the generator's state
        "test_cfg": {"mode": "whole"},
    }
    return build_segmentor(ConfigDict(config))


def mmengine_runner(patch: Patch, folder: Path, resume: str | None = None) -> tuple[nn.Module, list[float]]:
    """Train by a Runner of mmengine."""
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
