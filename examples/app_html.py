"""Write what the app shows as HTML: numbers, pictures with captions, and what went wrong."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from runs import Run

from algm_patch.viz.groups import CAPTION, size_colours


def numbers(run: Run) -> str:
    """Return four numbers of a run side by side: patch tokens, GFLOPs, milliseconds and agreement."""
    tiles = [
        tile("patch tokens left", *run.patches, ".0f", "fewer", "more"),
        tile("GFLOPs of the ViT", *run.gflops, ".1f", "fewer", "more"),
        tile("milliseconds", *run.ms, ".0f", "faster", "slower"),
        f"<div>agreement<strong>{run.agreement:.4f}</strong>correlation with the unpatched saliency</div>",
    ]
    return f'<div class="numbers">{"".join(tiles)}</div>'


def tile(name: str, before: float, after: float, form: str, less: str, more: str) -> str:
    """Return a number after merging, beside the number before; less and more say in words how it changed."""
    word = less if after <= before else more
    ratio = max(before, after) / max(min(before, after), 1e-9)
    return f"<div>{name}<strong>{after:{form}}</strong>of {before:{form}}: {ratio:.2f} × {word}</div>"


def figures(pictures: dict[str, NDArray[Any]]) -> str:
    """Return pictures with their captions beneath; a click enlarges one, another click brings it back."""
    shown = [
        f'<figure><label><input type="checkbox"><img src="{data_url(colours)}" alt="{escape(caption)}"></label>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, colours in (captioned(title, picture) for title, picture in pictures.items())
    ]
    return f'<div class="figures">{"".join(shown)}{legend()}</div>'


def legend() -> str:
    """Return what the outlines and colours of merged groups mean."""
    colours = [
        f'<span><i style="background: rgb{tuple(colour.tolist())}"></i>{escape(words)}</span>'
        for words, colour in size_colours()
    ]
    return f'<div class="legend"><p>{escape(CAPTION)}</p>{"".join(colours)}</div>'


def alert(message: str) -> str:
    """Return a message that something cannot be shown."""
    return f'<p class="alert" role="alert">{escape(message)}</p>'


def captioned(title: str, picture: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Return a caption and colours [H, W, 3] uint8.

    Values [H, W] become colours, grey where they are NaN, and the caption gives their range.
    """
    if picture.ndim == 3:
        return title, picture
    low, high = float(np.nanmin(picture)), float(np.nanmax(picture))
    scale = colormaps["viridis"].with_extremes(bad="0.9")
    colours = scale(np.ma.masked_invalid((picture - low) / max(high - low, 1e-9)), bytes=True)
    return f"{title} ({low:.2f} to {high:.2f})", colours[..., :3]


def data_url(colours: NDArray[Any]) -> str:
    """Return colours [H, W, 3] uint8 as the address of a WebP image."""
    file = io.BytesIO()
    Image.fromarray(colours).save(file, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
