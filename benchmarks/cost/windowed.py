"""Measure what merging inside the global blocks alone gains in SAM's trunk, whose other blocks attend in windows.

    python -m benchmarks.cost.windowed [--model samvit_base_patch16] [--size 1024] [--rounds 5] [--output]

The residual stream stays whole. In a global block, windows of 2x2 similar tokens merge before attention (CLAP, a fixed
number: 30 or 50 % fewer tokens), and unmerge after it, or after the MLP. Relative positions along the sides become
further dimensions of queries and keys, of which a merged token has its members' mean: exact while nothing merges
("folded"); or they are looked up as a bias, of the groups' first members ("leaders").

Parts of the trunk are timed in turns on one photograph (random weights: the work is the same); the whole trunk is their
sum. --output: the cosine of what the neck leaves with the unpatched model's, averaged over places; of random weights,
of which the relative positions get a standard deviation of 0.2.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer_sam import get_rel_pos
from torch import Tensor, nn
from torch.nn.functional import one_hot, scaled_dot_product_attention

from algm_patch.core.plan import plan_clap
from algm_patch.functional import TokenMap

from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of
from ..common.images import model_input, photograph
from ..common.timing import device_name, in_turns, median_ratio, seconds

SHARES = (0.3, 0.5)
WINDOW = (2, 2)

# Runs a global block on [B, H, W, D].
Run = Callable[[Any, Tensor], Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="samvit_base_patch16")
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels")
    add_machine_options(parser)
    parser.add_argument("--output", action="store_true", help="compare the output of the whole trunk, too")
    add_rounds(parser, 5)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = timm.create_model(options.model, img_size=options.size)
    model = enliven(model).eval().to(options.device, dtype_of(options))
    print(
        f"{options.model}, {device_name(options.device)}, {options.dtype}, {options.size} px, torch "
        f"{torch.__version__}, timm {timm.__version__}"
    )
    with torch.inference_mode():
        image = model_input(photograph("astronaut"), model, options.size)
        report(model, image, options.rounds, options.output)


def enliven(model: Any) -> Any:
    """Give relative positions, which begin at zero, values that matter."""
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, 0, 0.2)
    return model


def report(model: Any, image: Tensor, rounds: int, output: bool) -> None:
    """Print the shares of the parts of the trunk, and what each variant of its global blocks gains."""
    blocks = list(model.blocks)
    global_blocks = [block for block in blocks if block.window_size == 0]
    windowed = next(block for block in blocks if block.window_size > 0)
    counts = {"global": len(global_blocks), "windowed": len(blocks) - len(global_blocks), "else": 1}
    x = embedded(model, image)
    for block in blocks[: blocks.index(global_blocks[0])]:
        x = block(x)
    variants = variants_of_global_blocks()
    parts: dict[str, Callable[[], object]] = {
        "windowed": partial(windowed, x),
        "else": lambda: model.neck(embedded(model, image).permute(0, 3, 1, 2)),
        **{name: partial(run, global_blocks[0], x) for name, run in variants.items()},
    }
    for part in parts.values():
        part()
    spent = in_turns({name: partial(seconds, part) for name, part in parts.items()}, rounds)

    def trunk(of_a_global_block: str) -> list[float]:
        """Return the seconds of the whole trunk in each round, with its global blocks run in this way."""
        times = zip(spent[of_a_global_block], spent["windowed"], spent["else"], strict=True)
        return [g * counts["global"] + w * counts["windowed"] + rest for g, w, rest in times]

    unpatched = trunk("unpatched")
    share = statistics.median(
        g * counts["global"] / whole for g, whole in zip(spent["unpatched"], unpatched, strict=True)
    )
    print(
        f"\n{counts['global']} global blocks of {len(blocks)}: {share:.0%} of {statistics.median(unpatched):.2g} s, on "
        f"a grid of {x.shape[1]}x{x.shape[2]}\n"
    )
    print("| global blocks | block, faster | trunk, faster | output |\n|---|---|---|---|")
    expected = features(model, image, variants["unpatched"]) if output else None
    for name, run in variants.items():
        block, whole = median_ratio(spent["unpatched"], spent[name]), median_ratio(unpatched, trunk(name))
        found = "" if expected is None else f"{cosine(features(model, image, run), expected):.4f}"
        print(f"| {name} | {block:.2f} x | {whole:.2f} x | {found} |", flush=True)


def variants_of_global_blocks() -> dict[str, Run]:
    """Return the ways to run a global block, by name."""
    found: dict[str, Run] = {"unpatched": lambda block, x: block(x), "folded, nothing merged": run_folded}
    for share in SHARES:
        merged = partial(run_merged, share=share)
        found[f"-{share:.0%}, leaders, unmerged after attention"] = partial(merged, attend=by_leaders, after_mlp=False)
        found[f"-{share:.0%}, leaders, unmerged after the MLP"] = partial(merged, attend=by_leaders, after_mlp=True)
        found[f"-{share:.0%}, folded, unmerged after the MLP"] = partial(merged, attend=by_folding, after_mlp=True)
    return found


def embedded(model: Any, image: Tensor) -> Tensor:
    """Return the tokens [B, H, W, D] that the first block is given."""
    return model.norm_pre(model.patch_drop(model.pos_drop(model.patch_embed(image) + model.pos_embed)))


def features(model: Any, image: Tensor, run: Run) -> Tensor:
    """Return what the neck leaves [B, D', H, W], with global blocks run in this way."""
    x = embedded(model, image)
    for block in model.blocks:
        x = block(x) if block.window_size > 0 else run(block, x)
    return model.neck(x.permute(0, 3, 1, 2))


def cosine(x: Tensor, y: Tensor) -> float:
    """Return the cosine of feature maps [B, D, H, W], averaged over places."""
    return nn.functional.cosine_similarity(x, y, dim=1).mean().item()


def run_merged(block: Any, x: Tensor, share: float, attend: Callable[..., Tensor], after_mlp: bool) -> Tensor:
    """Run a global block on fewer tokens by this share, and add what its halves leave to the whole residual."""
    grid, tokens = (x.shape[1], x.shape[2]), x.flatten(1, 2)
    y = block.norm1(tokens)
    windows = round(share * y.shape[1] / (WINDOW[0] * WINDOW[1] - 1))
    plan = plan_clap(y, grid, 0.0, WINDOW, 0, windows)
    added = block.ls1(attend(block.attn, plan(y), grid, plan.step))
    if after_mlp:
        added = added + block.ls2(block.mlp(block.norm2(plan(tokens) + added)))
        return (tokens + plan.step.unmerge(added)).view_as(x)
    tokens = tokens + plan.step.unmerge(added)
    return (tokens + block.ls2(block.mlp(block.norm2(tokens)))).view_as(x)


def run_folded(block: Any, x: Tensor) -> Tensor:
    """Run a global block on all its tokens, with its relative positions folded into queries and keys."""
    grid, tokens = (x.shape[1], x.shape[2]), x.flatten(1, 2)
    nothing = TokenMap.identity(x.shape[0], tokens.shape[1], x.device)
    tokens = tokens + block.ls1(by_folding(block.attn, block.norm1(tokens), grid, nothing))
    return (tokens + block.ls2(block.mlp(block.norm2(tokens)))).view_as(x)


def split(attention: Any, y: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values [B, heads, L, D] of tokens [B, L, D]."""
    return attention.qkv(y).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def by_leaders(attention: Any, y: Tensor, grid: tuple[int, int], step: TokenMap) -> Tensor:
    """Return attention on merged tokens [B, M, D], with the biases between the first members of the groups."""
    query, key, value = split(attention, y)
    rows, columns = step.first // grid[1], step.first % grid[1]  # [B, M]
    of_row = get_rel_pos(grid[0], grid[0], attention.rel_pos_h)[rows]  # [B, M, H, D]
    of_column = get_rel_pos(grid[1], grid[1], attention.rel_pos_w)[columns]
    shape = (*query.shape[:3], y.shape[1])
    to_rows = torch.einsum("bhmd,bmkd->bhmk", query, of_row).gather(3, rows[:, None, None].expand(shape))
    to_columns = torch.einsum("bhmd,bmkd->bhmk", query, of_column).gather(3, columns[:, None, None].expand(shape))
    bias = to_rows.add_(to_columns).add_(step.key_bias.to(query.dtype))
    return attention.proj(scaled_dot_product_attention(query, key, value, bias).transpose(1, 2).flatten(2))


def by_folding(attention: Any, y: Tensor, grid: tuple[int, int], step: TokenMap) -> Tensor:
    """Return attention on merged tokens [B, M, D], with positions as further dimensions of queries and keys."""
    query, key, value = split(attention, y)
    height, width = grid
    rows = torch.arange(height, device=y.device).repeat_interleave(width)
    columns = torch.arange(width, device=y.device).repeat(height)
    # Of a merged token: in which rows and columns its members stand, and its mean table of distances from there.
    here = torch.cat([one_hot(rows, height), one_hot(columns, width)], 1).to(y.dtype)
    here = step.merge(here.expand(y.shape[0], -1, -1))  # [B, M, H+W]
    of_row = get_rel_pos(height, height, attention.rel_pos_h)  # [H, H, D]
    of_column = get_rel_pos(width, width, attention.rel_pos_w)
    far = [
        torch.einsum("bhmd,bmkd->bhmk", query, (place @ table.flatten(1)).unflatten(2, table.shape[1:]))
        for table, place in ((of_row, here[..., :height]), (of_column, here[..., height:]))
    ]
    log_sizes = step.key_bias.to(y.dtype).transpose(2, 3)  # [B, 1, M, 1]
    ones = torch.ones_like(query[..., :1])
    query = torch.cat([query * attention.scale, *far, ones], -1)
    key = torch.cat([key, here[:, None].expand(-1, key.shape[1], -1, -1), log_sizes.expand_as(ones)], -1)
    room = query.shape[-1] - value.shape[-1]
    value = nn.functional.pad(value, (0, room))
    y = scaled_dot_product_attention(query, key, value, scale=1.0)[..., :-room]
    return attention.proj(y.transpose(1, 2).flatten(2))


if __name__ == "__main__":
    main()
