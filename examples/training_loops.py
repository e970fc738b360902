"""Add one line to training scripts: plain PyTorch, transformers' Trainer, Lightning, accelerate, mmengine.

    python examples/training_loops.py [plain trainer-beit trainer-dpt lightning accelerate mmengine]

Each file in ``loops/`` is such a script: it builds, trains and evaluates a model in its library's own loop, leaves its
checkpoints, and resumes from them. ALGM is the line ``patch(model)`` and nothing else.

In training all images of a batch merge the same number of tokens, in evaluation each merges by its own content: the
patch follows ``model.train()`` and ``model.eval()``, which all these loops call. Checkpoints are those of an unpatched
model.

The images are rectangles whose colours are the classes, small enough to see the loss fall within a minute.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from loops.common import Script
from loops.huggingface import beit, dpt, huggingface
from loops.in_accelerate import in_accelerate
from loops.in_lightning import in_lightning
from loops.in_mmengine import mmengine_runner
from loops.plain import plain_pytorch
from torch import nn

from algm_patch import apply_algm

SCRIPTS: dict[str, Script] = {
    "plain": plain_pytorch,
    # transformers saves BEiT's weights under the names of its first releases, which Trainer does not find (its #43701).
    "trainer-beit": huggingface(beit, again=True),
    "trainer-dpt": huggingface(dpt),
    "lightning": in_lightning,
    "accelerate": in_accelerate,
    "mmengine": mmengine_runner,
}


def patch(model: nn.Module) -> None:
    """Patch a model: the one line."""
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.9)


def main(arguments: list[str] | None = None) -> None:
    """Run the scripts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Run these: {', '.join(SCRIPTS)} (default: all).")
    names = parser.parse_args(arguments).names
    if unknown := [name for name in names if name not in SCRIPTS]:
        parser.error(f"there is no {', '.join(unknown)}: {', '.join(SCRIPTS)}")
    for name in names or SCRIPTS:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            model, losses = SCRIPTS[name](patch, Path(folder))
        print(
            f"{name}: loss {losses[0]:.2f} to {losses[-1]:.2f}; tokens after each layer {model.algm.tokens_per_layer}"
        )


if __name__ == "__main__":
    main()
