"""Follow the tokens through a patched ViT: every call of a library function in one forward pass, file by file.

    python -m benchmarks.cost.walk

prints the walk as a tree, and how many calls it takes and how many of them lead into another file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import timm
import torch

import algm_patch

ROOT = str(Path(algm_patch.__file__).parent) + "/"


class Call(NamedTuple):
    """Hold one call of a library function: its file, the file it was called from, and the calls around it."""

    file: str
    name: str
    caller: str
    depth: int


def file_of(frame: FrameType | None) -> str:
    """Return the file of the library that a frame runs, or the nearest frame below it that runs one."""
    while frame is not None and not frame.f_code.co_filename.startswith(ROOT):
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename.removeprefix(ROOT)


def walk(run: Callable[[], object]) -> list[Call]:
    """Return every call of a library function while ``run`` runs, in order."""
    calls: list[Call] = []
    depth = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal depth
        if not frame.f_code.co_filename.startswith(ROOT):
            return
        if event == "call":
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name).replace("<locals>.", "")
            calls.append(Call(file_of(frame), name, file_of(frame.f_back), depth))
        depth += {"call": 1, "return": -1}.get(event, 0)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


def main() -> None:
    """Print the walk of a forward pass through a ViT of three blocks: CLAP in the first, GBM in the second."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0).eval()
    algm_patch.apply_algm(model, clap_layer=1, gbm_layers=[2])
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        model(image)  # what is computed once and kept is no part of the walk
        calls = walk(lambda: model(image))
    for call in calls:
        print(f"{'  ' * call.depth}{call.name} ({call.file})")
    hops = sum(call.caller not in ("", call.file) for call in calls)
    print(f"\n{len(calls)} calls, {hops} into another file")


if __name__ == "__main__":
    main()
