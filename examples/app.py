"""Show in a browser what the settings do to an image: its tokens, the prediction, cost and time.

    python examples/app.py [--port 7860]

Runs DINOv2 ViT-S/14 with a saliency head, offline (with the extra ``app``). Images stay on this machine. Visitors take
turns. Every run patches the model anew, so that nobody sees the settings of another.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dinov2_saliency
import gradio as gr
import numpy as np
import skimage
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from pictures import normalise, open_image, to_input
from stopwatch import milliseconds
from torch import Tensor, nn
from uploads import RefusedError, read

from algm_patch import apply_algm, remove_algm, tune
from algm_patch.viz import panels

ROUNDS = 3  # of timing
BUDGET = 45  # seconds to tune
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")
CLAP_OFF = 0
HINT = "Upload an image, or choose an example."
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}


@dataclass(frozen=True)
class Run:
    """Hold what a visitor sees of an image under some settings.

    Attributes:
        pictures: [H, W, 3] uint8, each with its title.
        numbers: a table in Markdown.
    """

    pictures: list[tuple[NDArray[Any], str]]
    numbers: str


# -- what runs on the model


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the saliency [B, 1, H, W]."""
    return model(images)


def run(model: nn.Module, path: str, settings: dict[str, Any]) -> Run:
    """Run an unpatched model on an image, without merging and with it; leave the model unpatched."""
    image = to_input(read(path))
    plain = copy.deepcopy(model)
    apply_algm(model, **settings)
    try:
        shown = panels(model, image, predict)
        merging, unpatched = model.algm.gflops, model.algm.unpatched_gflops
        left, whole = model.algm.tokens_per_layer[-1], model.algm.token_map.labels.shape[1]
        with torch.inference_mode():
            spent = milliseconds([lambda: plain(image), lambda: model(image)], ROUNDS)
    finally:
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
    """Return a panel of colours as it is, or a panel of values [H, W] in colours [H, W, 3] uint8."""
    if panel.ndim == 3:
        return panel
    values = np.nan_to_num(panel, nan=float(np.nanmin(panel)))
    span = max(float(np.ptp(values)), 1e-9)
    return (colormaps["viridis"]((values - values.min()) / span)[..., :3] * 255).astype(np.uint8)


def find(model: nn.Module, path: str | None, keep: float) -> dict[str, Any]:
    """Return the settings that tune finds on the visitor's image and some photographs; leave the model unpatched."""
    pictures = [open_image(Path(photograph)) for photograph in photographs()]
    if path:
        pictures.append(read(path))
    images = torch.cat([normalise(picture, (448, 448)) for picture in pictures])
    try:
        settings = tune(model, images, keep, predict=predict, budget=BUDGET)
    except RuntimeError as error:
        raise RefusedError(f"{error}") from error
    remove_algm(model)
    return dict(**settings)


def photographs() -> list[str]:
    """Return the paths of scikit-image's photographs that are offered as examples."""
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
    """Return the settings that the controls show.

    As long as they show those that tune ``found``, return all of these: they also hold what has no control.
    """
    shown = {
        "clap_layer": None if clap_layer == CLAP_OFF else int(clap_layer),
        "gbm_layers": tuple(sorted(int(layer) for layer in gbm_layers)),
        "tau": "auto" if auto else tau,
        "window": (int(window), int(window)),
        "proportional_attention": proportional,
    }
    return found if found and all(same(found[name], value) for name, value in shown.items()) else shown


def same(found: Any, shown: Any) -> bool:
    """Return whether two settings are equal, up to what sliders round."""
    return math.isclose(found, shown, abs_tol=1e-3) if isinstance(found, float) else found == shown


def controls_of(found: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of the controls that show some settings."""
    auto = isinstance(found["tau"], str)
    tau = 0.95 if auto else found["tau"]
    layers = list(found["gbm_layers"])
    return auto, tau, found["clap_layer"] or CLAP_OFF, layers, found["window"][0], found["proportional_attention"]


def page(model: nn.Module) -> gr.Blocks:
    """Return the page that shows an unpatched model."""

    def show(path: str | None, *controls: Any) -> tuple[Any, str]:
        if not path:
            return [], HINT
        try:
            found = run(model, path, settings_of(*controls))
        except ValueError as error:  # the upload cannot be used, or the settings do not go together
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
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    page(dinov2_saliency.load()).launch(server_port=options.port, max_file_size="50mb", allowed_paths=photographs())


if __name__ == "__main__":
    main()
