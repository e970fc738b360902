"""The options of the commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..tuning.cost import UNITS
from . import commands


def parse(description: str | None, arguments: Sequence[str] | None) -> Any:
    """Return the options, with the function of the chosen command as ``command``."""
    return parser(description).parse_args(arguments)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    whole = argparse.ArgumentParser(
        "algm-patch", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    add_help(whole)
    whole.add_argument(
        "--version", action="version", version=f"algm_patch {__version__}", help="Print the version and leave."
    )
    added = whole.add_subparsers(required=True, metavar="COMMAND")

    showing = command(added, "show", commands.show, "Draw what merges in an image.")
    add_image(showing)
    add_model(showing)
    add_settings(showing)
    add_out(showing)

    tuning = command(added, "tune", commands.find, "Find the cheapest settings that keep a model's answers.")
    tuning.add_argument(
        "images", type=Path, metavar="DIR", help="Take the images of this folder, 8 to 64, without labels."
    )
    add_model(tuning)
    tuning.add_argument(
        "--keep",
        type=part,
        action="append",
        metavar="PART",
        help="Keep at least this part of the answer (default: 0.98); or by name, once for each: pixels=0.97.",
    )
    tuning.add_argument(
        "--budget", default="10min", help="Spend at most this time: 90s, 10min, 1h, ... (default: 10min)."
    )
    tuning.add_argument(
        "--cost", choices=[*UNITS], default="gflops", help="Save GFLOPs of the ViT, or measured time (default: gflops)."
    )
    tuning.add_argument(
        "--seed", type=int, default=0, help="Put the images in the order that this number gives (default: 0)."
    )
    add_out(tuning)

    measuring = command(
        added, "bench", commands.bench, "Measure GFLOPs and time of a forward pass, with merging and without."
    )
    add_image(measuring)
    add_model(measuring)
    add_settings(measuring)
    measuring.add_argument(
        "--batch", type=positive, default=1, help="Put so many copies of the image in a batch (default: 1)."
    )
    measuring.add_argument("--rounds", type=positive, default=9, help="Measure so many times (default: 9).")

    census = command(added, "models", commands.models, "List which models can be patched, and why others cannot.")
    census.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="Look at these models of timm and model types of transformers; * and ? are wildcards (default: all).",
    )
    return whole


def command(added: Any, name: str, function: Any, told: str) -> argparse.ArgumentParser:
    """Return the parser of a new command."""
    found: argparse.ArgumentParser = added.add_parser(
        name, help=told, description=told, add_help=False, allow_abbrev=False
    )
    add_help(found)
    found.set_defaults(command=function)
    return found


def add_help(to: argparse.ArgumentParser) -> None:
    """Add the option that prints the help."""
    to.add_argument("-h", "--help", action="help", help="Print this help and leave.")


def add_image(to: argparse.ArgumentParser) -> None:
    """Add the image that a command takes."""
    to.add_argument("image", type=Path, help="Take this image file: JPEG, PNG, WebP, TIFF or BMP.")


def add_model(to: argparse.ArgumentParser) -> None:
    """Add the options that choose a model."""
    to.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="Take this ViT of timm, or this folder or hub name of transformers.",
    )
    to.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="Load this file into a timm model (default: the hub's weights).",
    )
    to.add_argument(
        "--size", type=positive, nargs=2, metavar=("H", "W"), help="Give a timm model inputs of this size in pixels."
    )
    to.add_argument(
        "--device", metavar="NAME", help="Run on this device, such as cpu or cuda:1 (default: cuda if there is one)."
    )


def add_settings(to: argparse.ArgumentParser) -> None:
    """Add the options that change settings; those of ``apply_algm`` hold for the rest."""
    to.add_argument(
        "--settings", type=Path, metavar="FILE", help="Take the settings that tune or Settings.save wrote to this file."
    )
    to.add_argument("--clap-layer", type=int, metavar="LAYER", help="Run CLAP in this block, counted from 1.")
    to.add_argument(
        "--gbm-layers",
        type=int,
        nargs="*",
        metavar="LAYER",
        help="Run GBM in these blocks, from 1 on; or in none.",
    )
    to.add_argument("--tau", type=number_or_rule, help="Set CLAP's threshold: a number, auto or paper (default: auto).")
    to.add_argument(
        "--merge-to",
        type=float,
        metavar="SHARE",
        help="Leave this share of the patches at each merge.",
    )


def add_out(to: argparse.ArgumentParser) -> None:
    """Add the option that says where files go."""
    to.add_argument(
        "--out",
        type=Path,
        default=Path("algm_out"),
        metavar="DIR",
        help="Write files to this folder (default: algm_out).",
    )


# -- what options hold


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def part(text: str) -> float | tuple[str, float]:
    """Return a number, or of a text such as "classes=0.85" the name and the number."""
    name, _, number = text.rpartition("=")
    return (name, float(number)) if name else float(number)


def number_or_rule(text: str) -> float | str:
    """Return a number, or the name of a rule as it is."""
    try:
        return float(text)
    except ValueError:
        return text
