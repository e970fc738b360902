"""Load official checkpoints of Segmenter."""

from __future__ import annotations

from pathlib import Path

import torch

from .models import SegmentationModel
from .weights import ModelError, load_strictly

HALF = (0.5, 0.5, 0.5)
NORMALISATION = {"vit": (HALF, HALF), "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def load_segmenter(folder: Path) -> SegmentationModel:
    """Return the model of a checkpoint, with the normalisation, size, window and stride of its variant.yml.

    Raises:
        ModelError: if the package ``segm`` cannot be imported, or the files do not fit each other.
    """
    import yaml

    try:
        from segm.model.decoder import DecoderLinear, MaskTransformer
        from segm.model.segmenter import Segmenter
        from segm.model.vit import VisionTransformer
    except ImportError as error:
        raise ModelError(
            f"{folder} is a checkpoint of Segmenter, whose package segm cannot be imported ({error}). Put a checkout "
            "of github.com/rstrudel/segmenter on PYTHONPATH"
        ) from error
    variant = yaml.load((folder / "variant.yml").read_text(), Loader=yaml.FullLoader)  # it holds tuples
    try:
        encoder_settings, inference = dict(variant["net_kwargs"]), variant["inference_kwargs"]
        mean, std = NORMALISATION[variant["dataset_kwargs"]["normalization"]]
        decoder_settings = dict(encoder_settings.pop("decoder"))
        classes, width = encoder_settings.pop("n_cls"), encoder_settings["d_model"]
        patch, kind = encoder_settings["patch_size"], decoder_settings.pop("name")
        for unused in ("backbone", "normalization"):
            encoder_settings.pop(unused, None)
        encoder = VisionTransformer(**encoder_settings, d_ff=4 * width, n_cls=1000)
        if kind == "linear":
            decoder = DecoderLinear(classes, patch, width)
        elif kind == "mask_transformer":
            decoder = MaskTransformer(
                classes, patch, width, n_heads=width // 64, d_model=width, d_ff=4 * width, **decoder_settings
            )
        else:
            raise ModelError(f"{folder / 'variant.yml'}: decoder {kind!r} is neither linear nor mask_transformer")
        size, window, stride = (inference[key] for key in ("im_size", "window_size", "window_stride"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'variant.yml'} is not that of a Segmenter: {error!r}") from error
    network = Segmenter(encoder, decoder, n_cls=classes)
    path = folder / "checkpoint.pth"
    if not path.is_file():
        raise ModelError(f"{path} is not there")
    load_strictly(network, torch.load(path, map_location="cpu", weights_only=True)["model"], path)
    # mmcv, which resized the images that these were trained on, does not antialias.
    return SegmentationModel(network, classes, mean, std, size, window=window, stride=stride, antialias=False)
