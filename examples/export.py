"""Export a patched model by torch.export and to ONNX: any batch size, and faster than the unpatched model exported.

    python examples/export.py [--model NAME] [--size N] [--merge-to 0.6] [--out DIR]

Exports DINOv2 ViT-S/14 with a saliency head, offline, to two ONNX files: as it is, and with ALGM. Runs both with
onnxruntime on the CPU, in turns. Prints for each the file, its opset, how far its output is from torch's and its time;
and how closely the two predictions agree. With --model, any timm ViT with weights from the hub instead; then its patch
features are compared.

``merge_to`` makes it work: each merge leaves a fixed share of the patches of each image, the least alike. Shapes then
depend on nothing but the image size, which the file has fixed; the batch size stays free.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: on a busy machine they alone take a minute
    print("loading torch and timm ...", flush=True)

import argparse
import copy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dinov2_saliency
import pictures
import quickstart
import timm
import torch
from commands import load_timm, run, setting, step, times, whole_number
from stopwatch import milliseconds
from torch import Tensor, nn

from algm_patch import apply_algm

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4  # of the largest difference to torch's output


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Run the example; return "differences" and "ms" of each file, and "agreement"."""
    options = parse(arguments)
    check_installed()
    model, image = from_hub(options.model, options.size) if options.model else load_saliency(options.size)
    models = {"unpatched": model, "algm": copy.deepcopy(model)}

    apply_algm(models["algm"], clap_layer=1, gbm_layers=[5], merge_to=options.merge_to)

    options.out.mkdir(parents=True, exist_ok=True)
    sessions, outputs, differences = {}, {}, {}
    for name, each in models.items():
        path = options.out / f"{name}.onnx"
        step(f"exporting {path}")
        opset = to_onnx(to_program(each, image), path)
        sessions[name], outputs[name] = open_session(path), predict(each, image)
        differences[name] = check(sessions[name], image, outputs[name], path)
        print(f"{path}: opset {opset}, largest difference to torch {differences[name]:.1e}")
    step("measuring how long they take, in turns")
    ms = milliseconds([lambda name=name: run_onnx(sessions[name], image) for name in models])
    compare = quickstart.compare_features if options.model else quickstart.compare_saliency
    agreement = compare(outputs["unpatched"], outputs["algm"])

    print(f"\nonnxruntime, {image.shape[-1]}x{image.shape[-2]} pixels, batch of one:")
    for name, time in zip(models, ms, strict=True):
        print(f"{name:10}{time:8.1f} ms")
    print(f"{times(*ms, 'faster', 'slower')}\n{agreement}")
    return {"differences": differences, "ms": dict(zip(models, ms, strict=True)), "agreement": agreement}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a timm ViT with hub weights, instead of DINOv2 with its head")
    parser.add_argument(
        "--size", type=whole_number(1, 4096), help="side of the image in pixels (default: 518, or the timm model's own)"
    )
    parser.add_argument(
        "--merge-to", type=setting("merge_to"), default=0.6, help="share of its patches that each merge leaves (0.6)"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the files (default: out)")
    return parser.parse_args(arguments)


def check_installed() -> None:
    """Raise ModuleNotFoundError, naming what to install, before any work is done."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ModuleNotFoundError(f"Export to ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}")


# -- models


def load_saliency(size: int | None) -> tuple[nn.Module, Tensor]:
    """Return DINOv2 with its saliency head, for images of one size, and an image [1, 3, H, W]."""
    side = size or pictures.SIDE
    check_size(side, pictures.PATCH)
    step("loading DINOv2 ViT-S/14 with its saliency head")
    model = dinov2_saliency.load()
    # Resize the positions now: forward would resize them in every run, by an operator that ONNX lacks.
    model.backbone.set_input_size(img_size=(side, side))
    return model, pictures.normalise(pictures.open_image(None), (side, side))


def check_size(side: int, patch: int) -> None:
    """Raise ValueError if a side in pixels is no whole number of patches."""
    if side % patch:
        raise ValueError(f"--size {side} is no multiple of the model's {patch} pixels a patch")


class PatchFeatures(nn.Module):
    """Give the normalised patch features of a timm ViT's last layer."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, D, h, w], from images [B, 3, H, W]."""
        return quickstart.features(self.vit, images)


def from_hub(name: str, size: int | None) -> tuple[nn.Module, Tensor]:
    """Return the features of a timm model with weights from the hub, and an image [1, 3, H, W]."""
    sized = {} if size is None else {"img_size": size}
    vit = load_timm(name, **sized)
    if size is not None:
        check_size(size, max(vit.patch_embed.patch_size))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(vit, args=sized), is_training=False)
    return PatchFeatures(vit), transform(pictures.open_image(None))[None]


# -- export


def to_program(model: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    """Return the model as a graph without Python, for any number of images [B, 3, H, W] of this size.

    ``torch.export.save(program, "model.pt2")`` is a file that ``torch.export.load`` reads where this library is not
    installed, and that AOTInductor, TensorRT and ExecuTorch take. Patched or not, the model stays as it is.
    """
    images = image.expand(2, -1, -1, -1)  # an example of one would fix the batch size at one
    return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def to_onnx(program: torch.export.ExportedProgram, path: Path) -> int:
    """Write an ONNX file, with the weights beside it if they are more than it can hold (2 GB); return its opset."""
    onnx = torch.onnx.export(program, dynamo=True, verbose=False)
    assert onnx is not None
    onnx.save(path)
    return onnx.model.opset_imports[""]


# -- use


def open_session(path: Path) -> InferenceSession:
    """Return what runs an ONNX file on the CPU."""
    from onnxruntime import InferenceSession

    return InferenceSession(path, providers=["CPUExecutionProvider"])


def run_onnx(session: InferenceSession, images: Tensor) -> Tensor:
    """Return the output of an ONNX file."""
    (name,) = [entry.name for entry in session.get_inputs()]
    (output,) = session.run(None, {name: images.numpy()})
    return torch.from_numpy(output)


@torch.inference_mode()
def predict(model: nn.Module, image: Tensor) -> Tensor:
    """Return the output of a model of torch."""
    return model(image)


def check(session: InferenceSession, image: Tensor, expected: Tensor, path: Path) -> float:
    """Return the largest difference of a file's output to torch's, or raise SystemExit if it is more than rounding."""
    difference = (run_onnx(session, image) - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"{path} is wrong: its output is {difference:.1e} from torch's, more than {TOLERANCE:.0e}")
    return difference


if __name__ == "__main__":
    run(main)
