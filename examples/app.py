"""ALGM in a browser: an image, the settings as sliders, and what they do to tokens, prediction, cost and time.

    python examples/app.py [--port 7860]

Runs DINOv2 ViT-S/14 with a saliency head, offline (with the extra ``app``). Images stay on this machine. Visitors take
turns: every run sets all settings anew, so that nobody sees another's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dinov2_saliency
import gradio as gr
import numpy as np
import quickstart
import skimage
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from algm_patch import apply_algm, remove_algm, tune
from algm_patch.viz import panels

LEAST, MOST, SHOWN = 32, 64_000_000, 1024  # pixels: of a side, of an image, of the longer side as it is worked on
ROUNDS = 3
BUDGET = 45  # seconds to tune
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")
CLAP_OFF = 0
HINT = "Upload an image, or choose an example."
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}


class RefusedError(ValueError):
    """An upload cannot be used. The message is for the visitor."""


@dataclass(frozen=True)
class Run:
    """What a visitor sees of an image and settings.

    Attributes:
        pictures: [H, W, 3] uint8, each with its title.
        numbers: as Markdown.
    """

    pictures: list[tuple[NDArray[Any], str]]
    numbers: str


# -- uploads


def read(path: str | Path) -> Image.Image:
    """RGB, upright, the first frame, at most 1024 pixels a side.

    Raises:
        RefusedError: if it is no image that can be read, too small or too large.
    """
    try:
        with Image.open(path) as opened:
            wide, high = opened.size
            if min(wide, high) < LEAST:
                raise RefusedError(f"The image is {wide}×{high} pixels. It needs at least {LEAST} on each side.")
            if wide * high > MOST:
                raise RefusedError(
                    f"The image is {wide}×{high} pixels. At most {MOST // 1_000_000} megapixels, please."
                )
            picture = ImageOps.exif_transpose(opened)
            picture.thumbnail((SHOWN, SHOWN))
            return opaque(picture)
    except RefusedError:
        raise
    except Image.DecompressionBombError:
        raise RefusedError(f"The image is too large. At most {MOST // 1_000_000} megapixels, please.") from None
    except (OSError, SyntaxError, ValueError):
        raise RefusedError("This is not an image that can be read. JPEG, PNG and WebP work.") from None


def opaque(picture: Image.Image) -> Image.Image:
    """RGB of any mode: 16 bits scaled to 8, transparent pixels on white."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        scale = 255 / max(values.max(), 255 if values.max() <= 255 else 65535)
        picture = Image.fromarray((values.clip(0) * scale).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


# -- what runs on the model


def predict(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def run(model: nn.Module, path: str, settings: dict[str, Any]) -> Run:
    """With these settings and without merging."""
    image = quickstart.to_input(read(path))
    apply_algm(model, settings=settings)
    shown = panels(model, image, predict)
    with torch.inference_mode():
        model(image)
        merging, unpatched = model.algm.gflops, model.algm.unpatched_gflops
        left, whole = model.algm.tokens_per_layer[-1], model.algm.token_map.labels.shape[1]
        spent = in_turns(model, image, settings)
        remove_algm(model)
    lines = [
        "| | unpatched | merging | |",
        "|---|---|---|---|",
        f"| tokens after the last layer | {whole} | {left} | {whole / left:.2f} × fewer |",
        f"| GFLOPs of the ViT | {unpatched:.1f} | {merging:.1f} | {unpatched / merging:.2f} × fewer |",
        f"| ms, measured | {spent[0]:.0f} | {spent[1]:.0f} | {spent[0] / spent[1]:.2f} × faster |",
    ]
    return Run([(coloured(panel), title) for title, panel in shown.items()], "\n".join(lines))


def coloured(panel: NDArray[Any]) -> NDArray[Any]:
    if panel.ndim == 3:
        return panel
    values = np.nan_to_num(panel, nan=float(np.nanmin(panel)))
    span = max(float(np.ptp(values)), 1e-9)
    return (colormaps["viridis"]((values - values.min()) / span)[..., :3] * 255).astype(np.uint8)


def in_turns(model: nn.Module, image: Tensor, settings: dict[str, Any]) -> tuple[float, float]:
    """Milliseconds without merging and with it: medians."""
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for merging, own in enumerate(spent):
            if merging:
                apply_algm(model, settings=settings)
            else:
                remove_algm(model)
            start = time.perf_counter()
            model(image)
            own.append(1000 * (time.perf_counter() - start))
    return statistics.median(spent[0]), statistics.median(spent[1])


def find(model: nn.Module, path: str | None, keep: float) -> dict[str, Any]:
    """The settings that tune finds on the visitor's image and some photographs."""
    pictures = [Image.open(photograph).convert("RGB") for photograph in photographs()]
    if path:
        pictures.append(read(path))
    images = torch.cat([quickstart.normalise(picture, (448, 448)) for picture in pictures])
    try:
        settings = tune(model, images, keep, predict=predict, budget=BUDGET)
    except RuntimeError as error:
        raise RefusedError(f"{error}") from error
    remove_algm(model)
    return dict(**settings)


def photographs() -> list[str]:
    folder = Path(skimage.__file__).parent / "data"
    return [str(folder / name) for name in PHOTOGRAPHS]


# -- the page


def settings_of(
    found: dict[str, Any],
    auto: bool,
    tau: float,
    clap_layer: int,
    gbm_layers: Sequence[int],
    window: int,
    proportional: bool,
) -> dict[str, Any]:
    """Those of the controls; with what else was found by measurement, as long as they show what was found."""
    shown = {
        "clap_layer": None if clap_layer == CLAP_OFF else int(clap_layer),
        "gbm_layers": tuple(sorted(int(layer) for layer in gbm_layers)),
        "tau": "auto" if auto else tau,
        "window": (int(window), int(window)),
        "proportional_attention": proportional,
    }
    return found if found and all(same(found[name], value) for name, value in shown.items()) else shown


def same(found: Any, shown: Any) -> bool:
    """Sliders round."""
    return math.isclose(found, shown, abs_tol=1e-3) if isinstance(found, float) else found == shown


def controls_of(found: dict[str, Any]) -> tuple[Any, ...]:
    auto = isinstance(found["tau"], str)
    tau = 0.95 if auto else found["tau"]
    layers = list(found["gbm_layers"])
    return auto, tau, found["clap_layer"] or CLAP_OFF, layers, found["window"][0], found["proportional_attention"]


def page(model: nn.Module) -> gr.Blocks:
    def show(path: str | None, *controls: Any) -> tuple[Any, str]:
        if not path:
            return [], HINT
        try:
            found = run(model, path, settings_of(*controls))
        except ValueError as error:  # of the upload, or of settings that do not go together
            raise gr.Error(str(error), duration=None) from error
        return found.pictures, found.numbers

    def tuned(path: str | None, keep: float, progress: Any = gr.Progress(track_tqdm=True)) -> tuple[Any, ...]:  # noqa: B008
        try:
            found = find(model, path, keep)
        except ValueError as error:
            raise gr.Error(str(error), duration=None) from error
        return found, *controls_of(found)

    with gr.Blocks(title="algm_patch") as blocks:
        gr.Markdown(
            "## Similar tokens merge\n"
            "DINOv2 ViT-S/14 with a saliency head. Change a setting and see what merges, what becomes of the "
            "prediction, and what it costs."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="Image", type="filepath", elem_id="upload")
                gr.Examples(photographs(), upload, label="Examples")
                auto = gr.Checkbox(True, label="threshold by the image itself (auto)")
                tau = gr.Slider(0.5, 1, 0.95, step=0.001, label="threshold τ, where it is not auto", elem_id="tau")
                clap_layer = gr.Slider(0, 12, 1, step=1, label="CLAP in layer (0: nowhere)")
                gbm_layers = gr.CheckboxGroup(list(range(1, 13)), value=[5], label="GBM in layers")
                window = gr.Radio([2, 3, 4], value=2, label="side of CLAP's windows, in tokens")
                proportional = gr.Checkbox(True, label="proportional attention")
            with gr.Column(scale=3):
                numbers = gr.Markdown(HINT, elem_id="numbers")
                pictures = gr.Gallery(label="What merged", columns=3, height="auto", elem_id="pictures")
                with gr.Row():
                    keep = gr.Slider(0.9, 0.999, 0.98, step=0.001, label="keep of the unpatched answer")
                    button = gr.Button(f"Find settings by measurement ({BUDGET} s)", elem_id="tune")
        found = gr.State({})
        controls = [auto, tau, clap_layer, gbm_layers, window, proportional]
        inputs, outputs = [upload, found, *controls], [pictures, numbers]
        tau.release(lambda: False, None, auto, queue=False)
        gr.on(
            [upload.change, *(each.change for each in controls)],
            show,
            inputs,
            outputs,
            trigger_mode="always_last",
            **ONE_AT_A_TIME,
        )
        button.click(tuned, [upload, keep], [found, *controls], **ONE_AT_A_TIME)
    return blocks


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    page(dinov2_saliency.load()).launch(server_port=options.port, max_file_size="50mb", allowed_paths=photographs())


if __name__ == "__main__":
    main()
