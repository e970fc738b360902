"""A patched model's settings and its last forward pass, as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from ..core.compiling import ONE_GRAPH
from ..patching.block_pass import BlockPass
from ..patching.forward_pass import ForwardPass
from ..settings import Settings

# What a user of halves can do about it.
IN_ONE_GRAPH = (
    "compile the whole model; if it was, torch.compile(model, fullgraph=True, dynamic=True) says what broke its graph. "
    "One graph is faster, and faster still with fixed counts (merge_to)"
    if ONE_GRAPH
    else "torch 2.9 and newer have them in the graph, which is faster"
)


def report(title: str, settings: Settings, past: ForwardPass | None, saved: Callable[[], str]) -> str:
    """Return the lines that ``print(model.algm)`` shows.

    Args:
        past: the last forward pass; None if there was none.
        saved: returns the line of what merging saved in it.
    """
    *stages, (_, others) = summary(settings)
    lines = [title, *(f"{stage:4}  {told}" for stage, told in stages), others]
    lines += last_forward(past, saved()) if past and past.blocks else [no_pass(past)]
    return "\n  ".join(lines)


def reports(model: str, each: Mapping[str, str]) -> str:
    """Return the lines that ``print(model.algm)`` shows of several ViTs, from those of each by its path."""
    lines = [f"ALGM on {len(each)} ViTs of {model}"]
    for path, told in each.items():
        title, *others = told.removeprefix("ALGM on ").splitlines()
        lines += [f"{path}: {title}", *others]
    return "\n  ".join(lines)


def summary(settings: Settings) -> list[tuple[str, str]]:
    """Return the settings in words: of each stage, and then, under no name, of both."""
    clap, gbm = "off", "off"
    if settings.clap_layer is not None:
        tau = settings.calibrated_tau
        calibrated = "" if tau is None else f", calibrated: {tau:.4f}"
        clap = f"layer {settings.clap_layer}, window {settings.window}, tau {settings.tau}{calibrated}"
    if settings.gbm_layers:
        gbm = f"layer {', '.join(map(str, settings.gbm_layers))}, tau {settings.gbm_tau}"
    others = (
        f"proportional attention {'on' if settings.proportional_attention else 'off'}"
        f"{', unmerged after the head' if settings.unmerge_at == 'after_head' else ''}"
        f"{''.join(not_default(settings))}"
    )
    return [("CLAP", clap), ("GBM", gbm), ("", others)]


def not_default(settings: Settings) -> Iterator[str]:
    """Yield the less common settings that are not at their defaults."""
    for name in ("restore", "compare", "matching", "size_aware", "reduce", "place", "batch", "merge_to"):
        if settings[name] != getattr(Settings, name):
            yield f", {name} {settings[name]}"


def saving(merging: float, without: float) -> str:
    """Return a line on the GFLOPs with and without merging."""
    return f"{merging:.3g} of {without:.3g} GFLOPs of the ViT an image: {1 - merging / without:.0%} fewer"


def no_pass(past: ForwardPass | None) -> str:
    """Return a line that says why there is nothing to tell of the last forward pass."""
    return "no forward pass yet" if past is None else "last forward: the patch embedding ran, but none of the blocks"


def last_forward(past: ForwardPass, saved: str) -> list[str]:
    """Return lines on the last forward pass."""
    height, width = past.grid
    lines = [
        f"last forward: batch {past.batch}, grid {height}x{width} + {past.num_prefix_tokens} prefix",
        f"  patch tokens after each layer: {' '.join(map(str, patches_per_layer(past)))}",
        f"  {saved}",
    ]
    blocks = sorted(past.blocks.items())
    for layer, block in blocks:
        for stage, plan in block.plans.items():
            least, most = f"{plan.tau.min():.4f}", f"{plan.tau.max():.4f}"
            tau = least if least == most else f"{least} to {most}"
            prefix = block.num_prefix_tokens
            before, after = token_range(plan.sizes[:, prefix:]), token_range(plan.step.sizes[:, prefix:])
            lines.append(f"  layer {layer + 1}: {stage} {before} -> {after}, tau {tau}")
    if mixed := [str(layer + 1) for layer, block in blocks if block.views > 1]:
        lines.append(f"  several views in one sequence, where nothing more merges, in layer {', '.join(mixed)}")
    if past.by_halves:
        lines.append(f"  compiled in halves, with the merges in Python: {IN_ONE_GRAPH}")
    if past.taps is None:
        lines.append(f"  {between_blocks(blocks)}")
    elif given := [str(layer + 1) for layer, block in blocks if block.gives_grid and block.after is not None]:
        lines.append(f"  full grid given back after layer {', '.join(given)}")
    return lines


def between_blocks(blocks: list[tuple[int, BlockPass]]) -> str:
    """Return a line on what these blocks (numbered from 0) left for each other, where an unknown method ran them."""
    read = [str(layer) for layer, block in blocks if block.before is not None and not block.handed]
    if any(block.handed for _, block in blocks):
        where = f"the full grid was read after layer {', '.join(read)}" if read else "nothing read the full grid"
        return f"a method that ALGM does not know ran the blocks: between them, {where}"
    line = "every block gave back the full grid: a method that ALGM does not know ran them"
    if any(block.waits for _, block in blocks):
        return line
    return (
        f"{line}, with gradients or a compiler. With neither, they give it back where something reads it; and always, "
        "if algm_patch.adapters.reads_blocks names what the method reads"
    )


def tokens_per_layer(past: ForwardPass) -> list[int]:
    """Return the tokens, prefix included, that each block of a forward pass left; the most of any image.

    Of several views in one sequence, each has the same part.
    """
    patches = past.grid[0] * past.grid[1]
    blocks = [past.blocks[layer] for layer in sorted(past.blocks)]
    whole = [block.num_prefix_tokens + patches for block in blocks]
    left = [None if block.after is None else -(-block.after.sizes.shape[1] // block.views) for block in blocks]
    return [count if merged is None else merged for count, merged in zip(whole, left, strict=True)]


def patches_per_layer(past: ForwardPass) -> list[int]:
    """Return the patch tokens that each block of a forward pass left, as ``tokens_per_layer`` without the prefix."""
    prefixes = [past.blocks[layer].num_prefix_tokens for layer in sorted(past.blocks)]
    return [count - prefix for count, prefix in zip(tokens_per_layer(past), prefixes, strict=True)]


def token_range(sizes: Tensor) -> str:
    """Return how many tokens images of these sizes [B, M] have: a number, or the least and the most."""
    counts = (sizes > 0).sum(1)
    least, most = int(counts.amin()), int(counts.amax())
    return str(most) if least == most else f"{least} to {most}"
