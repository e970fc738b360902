"""Show what merges in an image, find settings, measure what they save, and list which models can be patched.

    python -m algm_patch show photo.jpg --model vit_base_patch16_dinov3 --out out
    python -m algm_patch tune photos/ --model vit_base_patch16_dinov3 --keep 0.98 --out out
    python -m algm_patch bench photo.jpg --model vit_base_patch16_dinov3 --settings out/settings.json
    python -m algm_patch models vit_base_patch16_224 swin_tiny_patch4_window7_224

Models are timm's, by name, with weights from the hub or from a file. Files are written to --out only.
"""

from __future__ import annotations

import argparse
import copy
import operator
import statistics
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..images.named import named_images
from ..images.prepare import prepare
from ..images.reading import open_image
from ..tuning.tune import tune
from ..viz import pareto, visualize
from .census import PATCHED, timm_models, transformers_models
from .inputs import CommandError, load, patched
from .timing import seconds_in_turns


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 after an error (which is printed), 130 after an interrupt.

    Raises:
        SystemExit: with status 2, if the arguments are not understood.
    """
    options = parse(arguments)
    try:
        return options.command(options)
    except (CommandError, ImportError, OSError, RuntimeError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None) -> Any:
    """Return the options, with the function of the chosen command as ``command``."""
    parser = argparse.ArgumentParser(
        "python -m algm_patch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    showing = commands.add_parser("show", help="draw what merges in an image")
    showing.set_defaults(command=show)
    showing.add_argument("image", type=Path)
    add_model(showing)
    add_settings(showing)
    add_out(showing)

    tuning = commands.add_parser("tune", help="find the cheapest settings that keep a model's answers")
    tuning.set_defaults(command=find)
    tuning.add_argument("images", type=Path, metavar="DIR", help="a folder of 8 to 64 images, without labels")
    add_model(tuning)
    tuning.add_argument(
        "--keep",
        type=part,
        action="append",
        metavar="PART",
        help="least part of the answer to keep (default: 0.98); or by name, once for each: pixels=0.97",
    )
    tuning.add_argument("--budget", default="10min", help="time to spend: 90s, 10min, 1h, ... (default: 10min)")
    add_out(tuning)

    measuring = commands.add_parser("bench", help="measure GFLOPs and time of a forward pass, with merging and without")
    measuring.set_defaults(command=bench)
    measuring.add_argument("image", type=Path)
    add_model(measuring)
    add_settings(measuring)
    measuring.add_argument("--batch", type=positive, default=1, help="copies of the image in a batch (default: 1)")
    measuring.add_argument("--rounds", type=positive, default=9, help="times to measure (default: 9)")

    census = commands.add_parser("models", help="list which models can be patched, and why others cannot")
    census.set_defaults(command=models)
    census.add_argument(
        "names", nargs="*", metavar="NAME", help="of a timm model (default: all of timm and transformers)"
    )
    return parser.parse_args(arguments)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model."""
    parser.add_argument("--model", required=True, metavar="NAME", help="a ViT of timm")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its weights (default: those of the hub)")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="size of its input in pixels")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that change settings; those of ``apply_algm`` hold for the rest."""
    parser.add_argument("--settings", type=Path, metavar="FILE", help="settings that tune or Settings.save wrote")
    parser.add_argument("--clap-layer", type=int, metavar="LAYER", help="the block of CLAP, from 1")
    parser.add_argument("--gbm-layers", type=int, nargs="*", metavar="LAYER", help="the blocks of GBM, from 1; or none")
    parser.add_argument("--tau", type=number_or_rule, help="CLAP's threshold: a number, auto or paper")
    parser.add_argument("--merge-to", type=float, metavar="SHARE", help="the share of its patches that a merge leaves")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where files go."""
    parser.add_argument(
        "--out", type=Path, default=Path("algm_out"), metavar="DIR", help="folder for files (default: algm_out)"
    )


def positive(text: str) -> int:
    """Return a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def part(text: str) -> float | tuple[str, float]:
    """Return a number, or of a text such as "classes=0.85" the name and the number."""
    name, _, number = text.rpartition("=")
    return (name, float(number)) if name else float(number)


def asked(parts: list[Any]) -> float | dict[str, float]:
    """Return what to keep: a number, or numbers by name."""
    named = [each for each in parts if isinstance(each, tuple)]
    if len({name for name, _ in named}) < len(named):
        raise CommandError("--keep names something twice")
    if len(parts) == 1 and not named:
        number: float = parts[0]
        return number
    if len(named) < len(parts):
        raise CommandError(
            "--keep takes one number, or names with numbers, as in --keep pixels=0.97 --keep classes=0.85"
        )
    return dict(named)


def number_or_rule(text: str) -> float | str:
    """Return a number, or the name of a rule as it is."""
    try:
        return float(text)
    except ValueError:
        return text


# -- commands


def show(options: Any) -> int:
    """Draw what merges in an image."""
    model = patched(options)
    figure = visualize(model, open_image(options.image))
    path = new_file(options.out, f"{options.image.stem}.png")
    figure.savefig(path, dpi=100)
    print(f"{model.algm}\n\n{path}")
    return 0


def find(options: Any) -> int:
    """Find settings, save them, and draw what was tried."""
    if not options.images.is_dir():
        raise CommandError(f"{options.images} is not a folder")
    model = load(options)
    images = [prepare(model, image)[0] for _, image in named_images(options.images)]
    path = new_file(options.out, "settings.json")  # an error about it comes before minutes are spent
    settings = tune(model, images, asked(options.keep or [0.98]), budget=options.budget)
    try:
        settings.save(path)
    finally:
        print(f"{settings}\n{settings.record}\n")  # if saving fails, this is all that is left
    print(path)
    pareto(settings).savefig(options.out / "pareto.png", dpi=100)
    print(options.out / "pareto.png")
    return 0


def bench(options: Any) -> int:
    """Measure what the settings save."""
    model = load(options)
    images = prepare(model, open_image(options.image))[0].repeat(options.batch, 1, 1, 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    unpatched, merging = (each.to(device) for each in (model, patched(options, copy.deepcopy(model))))
    forwards = [unpatched.forward_features, merging.forward_features]
    with torch.inference_mode():
        spent = seconds_in_turns(forwards, images.to(device), options.rounds)
    faster = statistics.median(map(operator.truediv, *spent))
    gflops, before = merging.algm.gflops, merging.algm.unpatched_gflops
    print(f"{merging.algm}\n")
    print(f"{gflops:.1f} of {before:.1f} GFLOPs of the ViT an image: {before / gflops:.2f} x fewer")
    print(f"{faster:.2f} x faster (median of {options.rounds} rounds in turns, batch {len(images)}, {device})")
    return 0


def models(options: Any) -> int:
    """List which models can be patched; return 1 if one that was named cannot."""
    import timm

    unknown = [name for name in options.names if not timm.is_model(name)]
    if unknown:
        raise CommandError(f"timm {timm.__version__} has no model {', '.join(unknown)}")
    found = timm_models(options.names) if options.names else chain(timm_models(), all_of_transformers())
    refused = 0
    for each in tqdm(found, "models", unit="model", disable=bool(options.names)):
        refused += each.found != PATCHED
        tqdm.write(f"{each.name} ({each.cls}): {each.found}", file=sys.stdout)
    return int(bool(options.names) and refused > 0)


def all_of_transformers() -> Any:
    """Return the outcomes of transformers' models; none if it is not installed."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        print("transformers is not installed: its models are left out", file=sys.stderr)
        return ()
    return transformers_models()


def new_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
