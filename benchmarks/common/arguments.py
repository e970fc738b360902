"""Provide the command-line options that several benchmarks share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from algm_patch.cli.options import positive
from algm_patch.images.named import image_files

DTYPES = ("float32", "bfloat16", "float16")


def command_line(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser whose help shows a module's docstring as it is written."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=formatter, **options)


def share(text: str) -> float:
    """Read a number between 0 and 1."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1, not {text!r}")
    return float(text)


def image_folder(text: str) -> Path:
    """Read the path of a folder that holds images."""
    try:
        image_files(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def layer_and_share(text: str) -> tuple[int, float]:
    """Read a layer and a share of the tokens, such as 2:0.5."""
    layer, _, share = text.partition(":")
    return int(layer), float(share)


def layers_of(text: str) -> tuple[int, ...]:
    """Read layers, such as 3,6."""
    return tuple(map(int, text.split(",")))


def add_rounds(parser: Any, default: int, option: str = "--rounds") -> None:
    """Add the number of rounds in which variants take turns."""
    parser.add_argument(option, type=positive, default=default, help=f"rounds of timing (default: {default})")


def add_machine_options(parser: Any, dtype: str = "float32") -> None:
    """Add the device and the dtype."""
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--dtype", default=dtype, choices=DTYPES, help=f"(default: {dtype})")


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """Return the dtype that the option names."""
    dtype: torch.dtype = getattr(torch, options.dtype)
    return dtype
