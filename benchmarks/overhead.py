"""What merging costs and what is left of its gain: ratios, in one process, measured in turns.

    python benchmarks/overhead.py [--model NAME ...] [--size 512] [--device cpu] [--dtype float32] [--rounds 15]
    python benchmarks/overhead.py --family [NAME ...]

--family: the kinds of ViT that ALGM knows, each of width 384 and 12 blocks, on a grid of 32x32; all, or those named.


For each model (random weights: the work is the same), on one photograph:
- patched but merging nothing, and patched and removed, each against the unpatched model;
- merging a share of the 2x2 windows in layer 1, and globally in layer 5: GFLOPs of the ViT (cost.py) and time against
  the unpatched model, "kept" = speed-up / GFLOP ratio, "machinery" = the part of the forward pass that is neither of
  the blocks' own halves, "memory" = peak of what a forward pass allocates, against the unpatched model.
"""

from __future__ import annotations

import argparse
import json
import operator
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from cost import gflops
from PIL import Image
from skimage.data import astronaut
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torchvision.transforms.v2.functional import pil_to_tensor

from algm_patch import apply as patch
from algm_patch import apply_algm, remove_algm

SHARES = (0.1, 0.25, 0.5, 0.75)
REMOVED: dict[str, Any] = {}
WIDTH = {"hidden_size": 384, "num_attention_heads": 6}


def of_timm(name: str) -> tuple[Callable[[], nn.Module], int]:
    """How to build a family's small model, and its image size."""
    size = 32 * (14 if "patch14" in name else 16)
    return partial(timm.create_model, name, img_size=size, embed_dim=384, depth=12, num_heads=6), size


def of_transformers(name: str, **settings: Any) -> tuple[Callable[[], nn.Module], int]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**WIDTH, image_size=512, patch_size=16, **settings)
        return getattr(transformers, f"{name}Model")(config)

    return build, 512


FAMILIES = {
    "ViT": of_timm("vit_small_patch16_224"),
    "DINOv2": of_timm("vit_small_patch14_dinov2"),
    "DINOv3": of_timm("vit_small_patch16_dinov3"),
    "EVA-02": of_timm("eva02_small_patch14_224"),
    "RoPE, mixed": of_timm("vit_small_patch16_rope_mixed_224"),
    "NaFlex": of_timm("naflexvit_base_patch16_gap"),
    "BEiT": of_timm("beit_base_patch16_224"),
    "relative positions": of_timm("vit_relpos_small_patch16_224"),
    "transformers DINOv2": of_transformers("Dinov2"),
    "transformers DINOv3": of_transformers("DINOv3ViT", intermediate_size=1536),
    "transformers BEiT": of_transformers("Beit", intermediate_size=1536, use_relative_position_bias=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["vit_small_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--family", nargs="*", choices=[*FAMILIES, []], help="instead of --model (default: all)")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    kind = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{kind}, {options.dtype}, {options.size} px, torch {torch.__version__}, timm {timm.__version__}")
    if options.family is None:
        models = {
            name: (partial(timm.create_model, name, img_size=options.size), options.size) for name in options.model
        }
    else:
        models = {name: FAMILIES[name] for name in options.family or FAMILIES}
    dtype = getattr(torch, options.dtype)
    for name, (build, size) in models.items():
        torch.manual_seed(0)
        model = build().eval().to(options.device, dtype)
        picture = Image.fromarray(astronaut()).resize((size, size))
        image = (pil_to_tensor(picture)[None] / 127.5 - 1).to(options.device, dtype)
        with torch.inference_mode():
            measure(name, model, image, options.rounds)


def measure(name: str, model: nn.Module, image: Tensor, rounds: int) -> None:
    with variant(model, {"gbm_layers": []}):
        model(image)
        similarities = model.algm.window_similarity.flatten()

    print(f"\n{name}")
    nothing, gone = ratios(model, image, [{"tau": 2.0, "gbm_layers": []}, REMOVED], 3 * rounds)
    print(f"time, merging nothing / unpatched: {nothing:.3f}      patched and removed / unpatched: {gone:.3f}")

    print("windows  attention      tokens  GFLOPs   time  speed-up  kept  machinery  memory")
    work, memory = gflops(model, image), peak_memory(model, image)
    for share in SHARES:
        settings = [
            {"tau": similarities.quantile(1 - share).item(), "gbm_layers": [5], "proportional_attention": proportional}
            for proportional in (False, True)
        ]
        for chosen, spent in zip(settings, ratios(model, image, settings, rounds), strict=True):
            with variant(model, chosen):
                less = work / gflops(model, image)
                print(
                    f"{share:7.0%}  {'proportional' if chosen['proportional_attention'] else 'plain':12} "
                    f"{model.algm.tokens_per_layer[0]:5} {model.algm.tokens_per_layer[-1]:5} "
                    f"{1 / less:7.2f} {spent:6.2f} {1 / spent:9.2f} {1 / spent / less:5.2f} "
                    f"{machinery(model, image, rounds):10.1%} {peak_memory(model, image) / memory:7.2f}"
                )


@contextmanager
def variant(model: nn.Module, settings: dict[str, Any] | None) -> Iterator[None]:
    """Within, the model is patched with these settings; None: unpatched; REMOVED: it was patched."""
    if settings is None:
        yield
        return
    apply_algm(model, settings=settings)
    if settings is REMOVED:
        remove_algm(model)
        yield
        return
    try:
        yield
    finally:
        remove_algm(model)


def ratios(model: nn.Module, image: Tensor, settings: list[dict[str, Any]], rounds: int) -> list[float]:
    """Time of each variant / time of the unpatched model: the median over rounds in which all take their turn.

    In a new order every round, on the same weights at the same place in memory (copies of a model differ by a few
    percent).
    """
    variants = [None, *settings]
    order = random.Random(0)
    spent: list[list[float]] = [[] for _ in variants]
    for _ in range(rounds):
        for i in order.sample(range(len(variants)), len(variants)):
            with variant(model, variants[i]):
                spent[i].append(seconds(model, image))
    base, *others = spent
    return [statistics.median(map(operator.truediv, times, base)) for times in others]


def seconds(model: nn.Module, image: Tensor) -> float:
    synchronize()
    start = time.perf_counter()
    model(image)
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machinery(model: nn.Module, image: Tensor, rounds: int) -> float:
    """Part of the time that patched blocks spend outside their own halves."""
    shares = []
    for _ in range(rounds):
        spent = {"blocks": 0.0, "halves": 0.0}
        with stopwatches(spent):
            total = seconds(model, image)
        shares.append((spent["blocks"] - spent["halves"]) / total)
    return statistics.median(shares)


@contextmanager
def stopwatches(spent: dict[str, float]) -> Iterator[None]:
    """Within, patched blocks add up their time and that of their halves."""

    def timed(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize()
            spent[what] += time.perf_counter() - start
            return result

        return run

    run_block = patch.run_block_by_halves

    def run_timed(call: Any, original: Any, block: Any, *args: Any, **kwargs: Any) -> Any:
        adapter = block._algm.adapter
        halves = adapter.attention_half, adapter.mlp_half
        adapter.attention_half, adapter.mlp_half = (staticmethod(timed(half, "halves")) for half in halves)
        try:
            return timed(run_block, "blocks")(call, timed(original, "halves"), block, *args, **kwargs)
        finally:
            adapter.attention_half, adapter.mlp_half = map(staticmethod, halves)

    patch.run_block_by_halves = run_timed
    try:
        yield
    finally:
        patch.run_block_by_halves = run_block


def peak_memory(model: nn.Module, image: Tensor) -> float:
    """Bytes, beyond what was allocated before."""
    if image.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model(image)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(image)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocated = [event["args"] for event in events if event.get("name") == "[memory]"]
    start = allocated[0]["Total Allocated"] - allocated[0]["Bytes"]
    return max(event["Total Allocated"] for event in allocated) - start


if __name__ == "__main__":
    main()
