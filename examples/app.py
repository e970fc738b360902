"""Show in a browser what the settings do to an image: its tokens, the prediction, cost and time.

    python examples/app.py [--port 7860]

Runs DINOv2 ViT-S/14 with a saliency head, offline (with the extra ``app``). Images stay on this machine. Visitors take
turns. Every run patches the model anew, so that nobody sees the settings of another.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dinov2_saliency
import gradio as gr
import runs
from app_html import alert, figures, numbers
from commands import run, whole_number
from torch import nn

from algm_patch.tuning.tune import NothingFoundError

STYLE = Path(__file__).with_name("app.css").read_text()
CLAP_OFF = 0
HINT = "Upload an image, or choose an example."
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}
TITLE = """<h2>Similar tokens merge</h2>
<p>DINOv2 ViT-S/14 with a saliency head. Change a setting and see what merges, what becomes of the prediction, and what
it costs.</p>"""
CLAP = "CLAP (conditional local average pooling) makes one token of each small window whose tokens are alike."
GBM = "GBM (global bipartite matching) merges tokens with their most similar partner, wherever in the image it is."
PROPORTIONAL = "A merged token weighs as much in attention as all the tokens that it stands for."
TAU = "Tokens at least so similar merge."


# -- settings and controls


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


# -- what the page answers


def show(model: nn.Module, path: str | None, *controls: Any) -> tuple[str, str]:
    """Return the numbers and the pictures of an image under the settings that the controls show, as HTML."""
    if not path:
        return HINT, ""
    try:
        found = runs.run(model, path, settings_of(*controls))
    except ValueError as error:  # the upload cannot be used, or the settings do not go together
        return alert(str(error)), ""
    return numbers(found), figures(found.pictures)


def tuned(model: nn.Module, path: str | None, percent: float) -> tuple[Any, ...]:
    """Return what tune says, the settings that it finds, and the values of the controls that show them."""
    try:
        found = runs.find(model, path, percent / 100)
    except ValueError as error:
        return alert(str(error)), *[gr.skip()] * 7
    except NothingFoundError as error:
        said = str(error).removeprefix("tune: ")
        return alert(f"No better settings found; yours stay. The search says: {said}."), *[gr.skip()] * 7
    return "Found: the controls show the settings, the result what they keep and save.", found, *controls_of(found)


# -- the page


def page(model: nn.Module) -> gr.Blocks:
    """Return the page that shows an unpatched model, with the first example computed."""
    photographs = runs.photographs()
    gr.set_static_paths(photographs)
    with gr.Blocks(title="algm_patch") as blocks:
        gr.HTML(f"<style>{STYLE}</style>{TITLE}", elem_id="title")
        with gr.Row(elem_id="layout"):
            with gr.Column(elem_id="image"):
                upload = gr.File(photographs[0], label="Image", type="filepath", height=100, elem_id="upload")
                examples = gr.Dataset(
                    label="Examples",
                    components=[gr.Image(render=False)],
                    samples=[[photograph] for photograph in photographs],
                    elem_id="examples",
                )
            with gr.Column(elem_id="settings"):
                auto = gr.Checkbox(True, label="threshold by the image itself (auto)")
                tau = gr.Slider(
                    0.5, 1, 0.95, step=0.001, label="threshold τ", info=TAU, interactive=False, elem_id="tau"
                )
                clap_layer = gr.Slider(0, 12, 1, step=1, label="CLAP in layer (0: nowhere)", info=CLAP)
                window = gr.Radio([2, 3, 4], value=2, label="side of CLAP's windows, in tokens")
                gbm_layers = gr.CheckboxGroup(
                    list(range(1, 13)), value=[5], label="GBM in layers", info=GBM, elem_id="layers"
                )
                proportional = gr.Checkbox(True, label="proportional attention", info=PROPORTIONAL)
            controls = [auto, tau, clap_layer, gbm_layers, window, proportional]
            first = show(model, photographs[0], {}, *(control.value for control in controls))
            with gr.Column(elem_id="result"):
                number_tiles = gr.HTML(first[0], elem_id="numbers")
                pictures = gr.HTML(first[1], elem_id="pictures")
                with gr.Row():
                    percent = gr.Slider(90, 99.9, 98, step=0.1, label="Keep at least … % of the answer")
                    with gr.Column():
                        button = gr.Button(f"Find settings by measurement ({runs.BUDGET} s)", elem_id="tune")
                        said = gr.HTML(elem_id="said")
        found = gr.State({})

        def on_change(*inputs: Any) -> tuple[str, str]:
            return show(model, *inputs)

        def on_tune(path: str | None, percent: float, _: Any = gr.Progress(track_tqdm=True)) -> tuple[Any, ...]:  # noqa: B008
            return tuned(model, path, percent)

        gr.on(
            [upload.change, *(control.change for control in controls)],
            on_change,
            [upload, found, *controls],
            [number_tiles, pictures],
            trigger_mode="always_last",
            show_progress="minimal",
            **ONE_AT_A_TIME,
        )
        examples.click(lambda sample: sample[0], examples, upload, show_progress="hidden")
        auto.change(lambda auto: gr.update(interactive=not auto), auto, tau, queue=False, show_progress="hidden")
        button.click(on_tune, [upload, percent], [said, found, *controls], show_progress_on=said, **ONE_AT_A_TIME)
    return blocks


def main(arguments: list[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=whole_number(1, 65535), default=7860, help="of this machine (default: 7860)")
    options = parser.parse_args(arguments)
    page(dinov2_saliency.load()).launch(server_port=options.port, max_file_size="50mb")


if __name__ == "__main__":
    run(main)
