"""Carry out the commands."""

from __future__ import annotations

import copy
import operator
import statistics
import sys
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..images.prepare import prepare
from ..images.reading import open_image
from ..tuning.judges import predict_dense
from ..tuning.tune import tune
from ..viz import pareto, visualize
from ..viz.text import check_matplotlib
from .census import PATCHED, matching, timm_models, timm_names, transformers_models, transformers_names
from .inputs import CommandError, load, patched
from .timing import seconds_in_turns


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
    keep = asked(options.keep or [0.98])
    check_matplotlib()  # errors come before minutes are spent
    path = new_file(options.out, "settings.json")
    model = load(options)
    settings = tune(model, options.images, keep, budget=options.budget, cost=options.cost, seed=options.seed)
    try:
        settings.save(path)
    finally:
        print(f"{settings}\n{settings.record}\n")  # if saving fails, this is all that is left
    pareto(settings).savefig(options.out / "pareto.png", dpi=100)
    print(f"{path}\n{options.out / 'pareto.png'}")
    print(f"\napply_algm(model, settings=Settings.load({str(path)!r}))")
    return 0


def bench(options: Any) -> int:
    """Measure what the settings save."""
    model = load(options)
    merging = patched(options, copy.deepcopy(model))
    images = prepare(merging, open_image(options.image), merging.algm.runtime.trunk)[0].repeat(options.batch, 1, 1, 1)
    weight = next(model.parameters())
    forwards = [partial(predict_dense, each) for each in (model, merging)]
    with torch.inference_mode():
        spent = seconds_in_turns(forwards, images.to(weight.device, weight.dtype), options.rounds)
    faster = statistics.median(map(operator.truediv, *spent))
    gflops, before = merging.algm.gflops, merging.algm.unpatched_gflops
    print(f"{merging.algm}\n")
    print(f"{gflops:.4g} of {before:.4g} GFLOPs of the ViT an image: {before / gflops:.2f} x fewer")
    speed = f"{faster:.2f} x faster" if faster >= 1 else f"{1 / faster:.2f} x slower"
    print(f"{speed} (median of {options.rounds} rounds in turns, batch {len(images)}, {weight.device})")
    return 0


def models(options: Any) -> int:
    """List which models can be patched; return 1 if one that was named cannot."""
    every = [timm_names(), transformers_names()]
    unknown = [pattern for pattern in options.names if not matching([*chain(*every)], [pattern])]
    if unknown:
        raise CommandError(f"neither timm nor transformers, as installed, has a model {', '.join(unknown)}")
    of_timm, of_transformers = (matching(names, options.names or ["*"]) for names in every)
    found = chain(timm_models(of_timm), transformers_models(of_transformers))
    listed = refused = 0
    for each in tqdm(found, "models", unit="model", disable=bool(options.names)):
        listed, refused = listed + 1, refused + (each.found != PATCHED)
        tqdm.write(f"{each.name} ({each.cls}): {each.found}", file=sys.stdout)
    if not listed:
        raise CommandError(f"{', '.join(options.names)}: takes no images, or needs a library that is not installed")
    return int(bool(options.names) and refused > 0)


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


def new_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name
