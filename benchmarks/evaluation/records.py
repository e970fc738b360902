"""Keep predictions on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

import algm_patch
from algm_patch import Algm
from algm_patch.files import written_whole

from . import models
from .dataset import Pair
from .models import SegmentationModel

FLOPS = "flops"  # the key in a record's text


def record_path(folder: Path, pair: Pair) -> Path:
    """Return the path of a record, which names the image's content and the size of the prediction."""
    return folder / f"{pair.digest[:24]}-{pair.size[0]}x{pair.size[1]}.png"


def read_record(path: Path) -> tuple[Tensor, int]:
    """Return a class map [H, W] uint8, and the operations that it cost."""
    with Image.open(path) as record:
        return torch.from_numpy(np.array(record)), int(record.info[FLOPS])


def write_record(path: Path, predicted: Tensor, flops: int) -> None:
    """Write a class map and its operations, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text(FLOPS, str(flops))
    with written_whole(path) as unfinished:
        Image.fromarray(predicted.numpy()).save(unfinished, "PNG", pnginfo=text)


def fingerprint(model: SegmentationModel) -> str:
    """Return a digest of all that decides a prediction except the image: weights, settings, code and versions.

    Raises:
        ValueError: for a model with hooks or an exchanged ``forward``, whose effect a digest cannot tell.
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
        if isinstance(handle, Algm):
            digest.update(f"{plain_settings(handle)} {handle.calibrated_tau}\n".encode())
        config: Any = getattr(part, "config", None)
        if hasattr(config, "to_json_string"):
            digest.update(config.to_json_string().encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} {tensor.device.type}\n".encode())
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(content)
    digest.update(f"{torch.__version__} {timm.__version__} {code_digest()}".encode())
    return digest.hexdigest()[:24]


def plain_settings(handle: Algm) -> dict[str, Any]:
    """Return the settings of a patched model, without how they were found."""
    return {key: value for key, value in vars(handle.settings).items() if key != "record"}


def is_plain(value: Any) -> bool:
    """Return whether a value prints the same in every process: None, a number, a text, or a sequence of these."""
    return (
        value is None
        or isinstance(value, (bool, int, float, str))
        or (isinstance(value, (tuple, list)) and all(map(is_plain, value)))
    )


def code_digest() -> str:
    """Return a digest of the library and of the code that brings images to a model."""
    digest = hashlib.sha256()
    folder = Path(models.__file__).parent
    sources = [folder / name for name in ("models.py", "dense.py", "huggingface.py", "segmenter.py")]
    for path in (*sources, *sorted(Path(algm_patch.__file__).parent.rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()
