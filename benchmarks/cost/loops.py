"""Measure what a loop over the blocks costs that the library does not know, against timm's own method.

    python -m benchmarks.cost.loops [--model NAME] [--size 512] [--batch 1] [--device cpu] [--dtype float32]

The loop keeps the output of the middle and the last block, as ``forward_intermediates`` returns them. "made when read":
as it is; "at every block": if every block gave back the full grid, as it does with gradients. The same merges in all
three (a fixed number, in layers 1, 3, 5 and 7), random weights, one photograph; ratios of times measured in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor

from algm_patch.cli.options import positive
from algm_patch.patching import bookkeeping, forwards

from ..common.arguments import add_machine_options, add_rounds, command_line, dtype_of
from ..common.images import model_input, photograph
from ..common.patching import patched
from ..common.timing import calls_in_turns, device_name, median_ratio

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3, 5, 7], "merge_to": (0.6, 0.8, 0.8, 0.8)}
KNOWN, WHEN_READ, ALWAYS = "known method", "made when read", "at every block"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = command_line(__doc__)
    parser.add_argument("--model", default="vit_small_patch16_384")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels (default: 512)")
    parser.add_argument("--batch", type=positive, default=1, help="images (default: 1)")
    add_machine_options(parser)
    add_rounds(parser, 15)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = timm.create_model(options.model, img_size=options.size, num_classes=0)
    model = model.eval().to(options.device, dtype_of(options))
    image = model_input(photograph("astronaut"), model, options.size).expand(options.batch, -1, -1, -1)
    print(
        f"{options.model}, {device_name(options.device)}, {options.dtype}, {options.size} px, batch {options.batch}, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )
    with torch.inference_mode(), patched(model, **SETTINGS):
        report(model, image, options.rounds)


def report(model: Any, image: Tensor, rounds: int) -> None:
    """Print the times of a patched model's loop, as ratios."""
    runs = {
        KNOWN: partial(model.forward_intermediates, image, indices=[len(model.blocks) // 2 - 1], norm=True),
        WHEN_READ: partial(loop, model, image),
        ALWAYS: partial(at_every_block, model, image),
    }
    for run in runs.values():
        run()
    spent = calls_in_turns(runs, rounds)
    for name in (WHEN_READ, ALWAYS):
        print(f"full grid {name}: {median_ratio(spent[name], spent[KNOWN]):.3f} of the {KNOWN}'s time")


def loop(model: Any, image: Tensor) -> list[Tensor]:
    """Run the blocks one after the other, and return the normed outputs of the middle and the last."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
    kept = []
    for layer, block in enumerate(model.blocks, 1):
        x = block(x)
        if layer in (len(model.blocks) // 2, len(model.blocks)):
            kept.append(x)
    return [model.norm(x) for x in kept]


def at_every_block(model: Any, image: Tensor) -> list[Tensor]:
    """Run the same loop over blocks that give back the full grid at once."""
    with patch.object(forwards, "EAGER", bookkeeping.UNTRACED):
        return loop(model, image)


if __name__ == "__main__":
    main()
