"""ALGM from the command line: see what merges, find settings, measure what they bring, ask what is patched.

    python -m algm_patch show photo.jpg --model vit_base_patch16_dinov3 --out out
    python -m algm_patch tune photos/ --model vit_base_patch16_dinov3 --keep 0.98 --out out
    python -m algm_patch bench photo.jpg --model vit_base_patch16_dinov3 --settings out/settings.json
    python -m algm_patch models vit_base_patch16_224 swin_tiny_patch4_window7_224

Models are timm's, by name, with the weights of the hub or of a file. Files are written to --out only.
"""

from __future__ import annotations

import argparse
import copy
import operator
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..apply import apply_algm
from ..settings import Settings
from ..tuning.tune import tune
from ..viz import pareto, visualize
from ..viz.figure import named_images
from ..viz.panels import prepare
from .census import PATCHED, timm_models, transformers_models


class CommandError(Exception):
    """What the user gave cannot be used. The message says what and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 after an error, which is printed; 2 for arguments that are not understood."""
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
    tuning.add_argument("images", type=Path, metavar="DIR", help="8 to 64 images, without labels")
    add_model(tuning)
    tuning.add_argument("--keep", type=float, default=0.98, help="of the answer (default: 0.98)")
    tuning.add_argument("--budget", default="10min", help="such as 90s, 10min, 1h (default: 10min)")
    add_out(tuning)

    measuring = commands.add_parser("bench", help="GFLOPs and time of a forward pass, against the unpatched model")
    measuring.set_defaults(command=bench)
    measuring.add_argument("image", type=Path)
    add_model(measuring)
    add_settings(measuring)
    measuring.add_argument("--batch", type=positive, default=1, help="copies of the image at once (default: 1)")
    measuring.add_argument("--rounds", type=positive, default=9, help="(default: 9)")

    census = commands.add_parser("models", help="which models of timm and transformers are patched, and why not")
    census.set_defaults(command=models)
    census.add_argument("names", nargs="*", metavar="NAME", help="of timm (default: every model of both libraries)")
    return parser.parse_args(arguments)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="NAME", help="a ViT of timm")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="instead of the hub's")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="of the model's input, in pixels")


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--settings", type=Path, metavar="FILE", help="that tune or Settings.save wrote")
    parser.add_argument("--clap-layer", type=int, metavar="LAYER")
    parser.add_argument("--gbm-layers", type=int, nargs="*", metavar="LAYER")
    parser.add_argument("--tau", type=number_or_rule)
    parser.add_argument("--merge-to", type=float, metavar="SHARE")


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("algm_out"), metavar="DIR", help="(default: algm_out)")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def number_or_rule(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


# -- commands


def show(options: Any) -> int:
    model = patched(options)
    figure = visualize(model, open_image(options.image))
    path = new_file(options.out, f"{options.image.stem}.png")
    figure.savefig(path, dpi=100)
    print(f"{model.algm}\n\n{path}")
    return 0


def find(options: Any) -> int:
    if not options.images.is_dir():
        raise CommandError(f"{options.images} is not a folder")
    model = load(options)
    images = [prepare(model, image)[0] for _, image in named_images(options.images)]
    path = new_file(options.out, "settings.json")  # before minutes are spent
    settings = tune(model, images, options.keep, budget=options.budget)
    try:
        settings.save(path)
    finally:
        print(f"{settings}\n{settings.record}\n")  # which may be all that is left of it
    print(path)
    pareto(settings).savefig(options.out / "pareto.png", dpi=100)
    print(options.out / "pareto.png")
    return 0


def bench(options: Any) -> int:
    model = load(options)
    images = prepare(model, open_image(options.image))[0].repeat(options.batch, 1, 1, 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    both = [each.to(device) for each in (model, patched(options, copy.deepcopy(model)))]
    with torch.inference_mode():
        spent = in_turns(both, images.to(device), options.rounds)
    faster = statistics.median(map(operator.truediv, *spent))
    print(f"{both[1].algm}\n")
    merging, without = both[1].algm.gflops, both[1].algm.unpatched_gflops
    print(f"{merging:.1f} of {without:.1f} GFLOPs of the ViT an image: {without / merging:.2f} x fewer")
    print(f"{faster:.2f} x faster (median of {options.rounds} rounds in turns, batch {len(images)}, {device})")
    return 0


def models(options: Any) -> int:
    """1 if one that is named is not patched."""
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
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        print("transformers is not installed: its models are left out", file=sys.stderr)
        return ()
    return transformers_models()


# -- models, images, measurements


def load(options: Any) -> Any:
    import timm

    if not timm.is_model(options.model):
        raise CommandError(f"timm {timm.__version__} has no model {options.model!r}")
    if options.weights is not None and not options.weights.is_file():
        raise CommandError(f"{options.weights} is not there")
    model = timm.create_model(options.model, pretrained=options.weights is None)
    if options.weights is not None:
        try:
            timm.models.load_checkpoint(model, str(options.weights))
        except Exception as error:  # each format of a file has errors of its own
            raise CommandError(f"{options.weights} has no weights for {options.model}: {error}") from error
    if options.size:
        if not hasattr(model, "set_input_size"):
            raise CommandError(f"{options.model} has one input size only. Leave --size out")
        model.set_input_size(tuple(options.size))
    return model.eval()


def patched(options: Any, model: nn.Module | None = None) -> Any:
    names = ("clap_layer", "gbm_layers", "tau", "merge_to")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = Settings.load(options.settings) if options.settings else None
    return apply_algm(load(options) if model is None else model, settings=settings, **given)


def open_image(path: Path) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        return ImageOps.exif_transpose(Image.open(path))
    except UnidentifiedImageError:
        raise CommandError(f"{path} is not an image") from None


def new_file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def in_turns(both: Sequence[nn.Module], images: Tensor, rounds: int) -> list[list[float]]:
    """Seconds of each model in each round."""
    spent: list[list[float]] = [[], []]
    for _ in tqdm(range(rounds), "measuring", leave=False):
        for model, own in zip(both, spent, strict=True):
            start = time.perf_counter()
            model.forward_features(images)  # type: ignore[operator]
            if images.is_cuda:
                torch.cuda.synchronize()
            own.append(time.perf_counter() - start)
    return spent
