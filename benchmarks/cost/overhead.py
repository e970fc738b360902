"""Measure what merging costs and how much of its gain is left.

    python -m benchmarks.cost.overhead [--model NAME ...] [--size 512] [--device cpu] [--dtype float32] [--rounds 15]
    python -m benchmarks.cost.overhead --family [NAME ...]

--family: the kinds of ViT that ALGM knows, each of width 384 and 12 blocks, on a grid of 32x32; all, or those named.

For each model (random weights: the work is the same), on one photograph, as ratios of times measured in turns:
- patched but merging nothing, and patched and removed, each against the unpatched model;
- merging a share of the 2x2 windows in layer 1, and globally in layer 5: GFLOPs of the ViT and time against the
  unpatched model; "kept": speed-up divided by the ratio of GFLOPs; "machinery": the share of the forward pass that is
  in the blocks, but in neither of their own halves; "memory": peak of what a forward pass allocates, against unpatched.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm

from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of
from ..common.gflops import gflops
from ..common.images import model_input, photograph
from ..common.memory import peak_memory
from ..common.patching import patched
from ..common.stopwatch import MACHINERY, time_shares
from ..common.timing import device_name, in_turns, median_ratio, seconds

SHARES = (0.1, 0.25, 0.5, 0.75)
WIDTH = {"hidden_size": 384, "num_attention_heads": 6}

# Builds a model.
Build = Callable[[], nn.Module]


def timm_family(name: str) -> tuple[Build, int]:
    """Return how to build a family's small model, and its image size."""
    size = 32 * (14 if "patch14" in name else 16)
    return partial(timm.create_model, name, img_size=size, embed_dim=384, depth=12, num_heads=6), size


def transformers_family(name: str, **settings: Any) -> tuple[Build, int]:
    """Return how to build a family's small model, and its image size."""

    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**WIDTH, image_size=512, patch_size=16, **settings)
        model: nn.Module = getattr(transformers, f"{name}Model")(config)
        return model

    return build, 512


FAMILIES = {
    "ViT": timm_family("vit_small_patch16_224"),
    "DINOv2": timm_family("vit_small_patch14_dinov2"),
    "DINOv3": timm_family("vit_small_patch16_dinov3"),
    "EVA-02": timm_family("eva02_small_patch14_224"),
    "RoPE, mixed": timm_family("vit_small_patch16_rope_mixed_224"),
    "NaFlex": timm_family("naflexvit_base_patch16_gap"),
    "BEiT": timm_family("beit_base_patch16_224"),
    "relative positions": timm_family("vit_relpos_small_patch16_224"),
    "transformers DINOv2": transformers_family("Dinov2"),
    "transformers DINOv3": transformers_family("DINOv3ViT", intermediate_size=1536),
    "transformers BEiT": transformers_family("Beit", intermediate_size=1536, use_relative_position_bias=True),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("--model", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--family", nargs="*", choices=[*FAMILIES, []], help="instead of --model (default: all)")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    add_machine_options(parser)
    add_rounds(parser, 15)
    options = parser.parse_args(arguments)
    print(
        f"{device_name(options.device)}, {options.dtype}, {options.size} px, torch {torch.__version__}, "
        f"timm {timm.__version__}"
    )
    models: dict[str, tuple[Build, int]]
    if options.family is None:
        models = {
            name: (partial(timm.create_model, name, img_size=options.size), options.size) for name in options.model
        }
    else:
        models = {name: FAMILIES[name] for name in options.family or FAMILIES}
    for name, (build, size) in models.items():
        torch.manual_seed(0)
        model = build().eval().to(options.device, dtype_of(options))
        image = model_input(photograph("astronaut"), model, size)
        with torch.inference_mode():
            measure(name, model, image, options.rounds)


def measure(name: str, model: nn.Module, image: Tensor, rounds: int) -> None:
    """Print the figures of a model."""
    with patched(model, gbm_layers=[]) as handle:
        model(image)
        similarities = handle.window_similarity.flatten()

    def merging_nothing() -> float:
        with patched(model, tau=1.05, gbm_layers=[]):
            return seconds(model, image)

    def removed() -> float:
        remove_algm(apply_algm(model))
        return seconds(model, image)

    print(f"\n{name}")
    nothing, gone = relative_times(model, image, [merging_nothing, removed], 3 * rounds)
    print(f"time, merging nothing / unpatched: {nothing:.3f}      patched and removed / unpatched: {gone:.3f}")
    print("windows  attention      tokens  GFLOPs   time  speed-up  kept  machinery  memory")
    work, memory = gflops(model, image), peak_memory(model, image)
    for share in SHARES:
        tau = similarities.quantile(1 - share).item()
        variants: list[dict[str, Any]] = [
            {"tau": tau, "gbm_layers": [5], "proportional_attention": proportional} for proportional in (False, True)
        ]
        timers = [partial(time_patched, model, image, settings) for settings in variants]
        for settings, time in zip(variants, relative_times(model, image, timers, rounds), strict=True):
            with patched(model, **settings) as handle:
                less = work / gflops(model, image)
                left = handle.tokens_per_layer
                print(
                    f"{share:7.0%}  {'proportional' if settings['proportional_attention'] else 'plain':12} "
                    f"{left[0]:5} {left[-1]:5} {1 / less:7.2f} {time:6.2f} {1 / time:9.2f} {1 / time / less:5.2f} "
                    f"{machinery(model, image, rounds):10.1%} {peak_memory(model, image) / memory:7.2f}"
                )


def time_patched(model: nn.Module, image: Tensor, settings: dict[str, Any]) -> float:
    """Return the seconds of a forward pass with these settings."""
    with patched(model, **settings):
        return seconds(model, image)


def relative_times(model: nn.Module, image: Tensor, timers: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Return the time of each variant divided by that of the unpatched model: the median over rounds.

    All run on the same weights at the same place in memory: copies of a model differ by a few percent.
    """
    every: list[Callable[[], float]] = [partial(seconds, model, image), *timers]
    spent = in_turns(dict(enumerate(every)), rounds)
    return [median_ratio(spent[index], spent[0]) for index in range(1, len(every))]


def machinery(model: nn.Module, image: Tensor, rounds: int) -> float:
    """Return the share of a forward pass that patched blocks spend outside of their own halves."""
    shares = [time_shares(model, image) for _ in range(rounds)]
    return statistics.median(sum(each[part] for part in MACHINERY) for each in shares)


if __name__ == "__main__":
    main()
