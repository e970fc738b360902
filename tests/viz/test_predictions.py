"""Predictions without merging and with it, as arrays."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algm_patch import visualize
from algm_patch.viz import animate, contact_sheet, panels
from algm_patch.viz.paint import NO_CLASS
from tests.support.models import build, photo
from tests.support.pictures import legend_of, logits


def test_predictions_without_merging_and_with_it(model):
    image, palette = photo(batch=1), np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    settings = model.algm.settings
    shown = panels(model, image, logits, palette)
    assert model.algm.settings == settings
    title, difference = list(shown.items())[-1]
    before, after = shown["prediction, unpatched"], shown["prediction, merging"]
    with torch.no_grad():
        expected = logits(build("ViT", dynamic_img_size=True).eval(), image)
    expected = nn.functional.interpolate(expected, (96, 80), mode="bilinear").argmax(1)[0]
    np.testing.assert_array_equal(before, palette[expected])
    assert before.dtype == np.uint8
    other = (before != after).any(-1)
    assert 0 < other.mean() < 1
    assert title == f"where they differ: {other.mean():.1%} of the pixels"
    assert (difference[other] == (213, 94, 0)).all()
    assert (difference[~other].max(-1) == difference[~other].min(-1)).all()


def test_predictions_of_values_and_of_classes(model):
    values = panels(model, photo(batch=1), lambda model, images: logits(model, images)[:, :1])
    assert values["prediction, unpatched"].shape == [*values.values()][-1].shape == (96, 80)
    assert [*values.values()][-1].max() > 0
    before, after = (values[f"prediction, {kind}"].ravel() for kind in ("unpatched", "merging"))
    told = float([*values][-1].removeprefix("difference: correlation "))
    assert told == pytest.approx(np.corrcoef(before, after)[0, 1], abs=0.05)  # of pixels, and here of an enlargement
    classes = panels(model, photo(batch=1), lambda model, images: logits(model, images).argmax(1))
    assert classes["prediction, merging"].shape == (96, 80, 3)
    model.algm.tau, model.algm.gbm_layers = 1.05, []
    same = panels(model, photo(batch=1), logits)
    assert "where they differ: 0.0% of the pixels" in same


def test_settings_return_when_a_prediction_fails(model):
    settings = model.algm.settings
    with pytest.raises(ZeroDivisionError):
        panels(model, photo(batch=1), lambda *_: 1 / 0)  # type: ignore[arg-type]
    assert model.algm.settings == settings


def test_too_short_a_palette(model):
    with pytest.raises(ValueError, match=r"palette has 1 colours, the prediction holds class [123]"):
        panels(model, photo(batch=1), logits, np.zeros((1, 3), np.uint8))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8])
@pytest.mark.parametrize("given", ["palette", "names", "nothing"])
def test_pixels_without_a_class_are_grey_and_named(model, dtype, given):
    """The model answers -1, or 255 where its dtype has no negative numbers."""

    def predict(model, images):
        classes = logits(model, images).argmax(1)
        classes[:, 0] = -1
        return classes.to(dtype)

    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    options = {"palette": {"palette": palette.tolist()}, "names": {"classes": list("abcd")}, "nothing": {}}[given]
    shown = panels(model, photo(batch=1), predict, options.get("palette"))
    for title in ("prediction, unpatched", "prediction, merging"):
        assert (shown[title][:16] == NO_CLASS).all()
        assert not (shown[title][16:] == NO_CLASS).all(-1).any()
    legend = legend_of(visualize(model, photo(batch=1), predict, **options), "classes:")
    assert [text.get_text() for text in legend.get_texts()] == [*options.get("classes", []), "no class"]
    assert [patch.get_facecolor() for patch in legend.get_patches()][-1] == pytest.approx([*(224 / 255,) * 3, 1])


def test_all_pixels_without_a_class(model):
    shown = panels(model, photo(batch=1), lambda model, images: logits(model, images).argmax(1) * 0 - 1)
    assert (shown["prediction, merging"] == NO_CLASS).all()


def not_at_all(model, images):
    return torch.rand(1, 4, 6, 5)


def at_first_only():
    answers: list[Any] = []

    def predict(model, images):
        answers[:] = answers or [logits(model, images)]
        return answers[0]

    return predict


def in_windows(model, images):
    return torch.cat([logits(model, window) for window in images.chunk(2, 2)], 2)


def flipped(model, images):
    return (logits(model, images) + logits(model, images.flip(3)).flip(3)) / 2


def in_one_batch(model, images):
    return logits(model, torch.cat([images, images.flip(3)]))[:1]


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (not_at_all, r"predict did not run the ViT \(VisionTransformer\) on the image"),
        (at_first_only(), "predict did not run the ViT"),
        (lambda model, images: build("ViT")(images)[:, :, None, None], "predict did not run the ViT"),
        (in_windows, "predict ran the ViT .* 2 times, on up to 1 images at once"),
        (flipped, "2 times, on up to 1 images"),
        (in_one_batch, "1 times, on up to 2 images"),
        (lambda model, images: model.forward_features(images), r"predict returned tokens \[1, 31, 64\]"),
        (lambda model, images: model(images), r"predict returned \[1, 3\], which is no dense answer"),
    ],
)
def test_a_prediction_that_cannot_be_shown(model, predict, message):
    panels(model, photo(batch=1, seed=5))  # an earlier image, which must not be shown for this one
    settings, hooks = model.algm.settings, len(model.patch_embed.proj._forward_pre_hooks)
    for verb in (panels, visualize):
        with pytest.raises(ValueError, match=message):
            verb(model, photo(batch=1), predict)
    assert model.algm.settings == settings
    assert len(model.patch_embed.proj._forward_pre_hooks) == hooks


def test_a_prediction_that_runs_the_model_twice_on_the_image(model):
    def predict(model, images):
        model(images)
        return logits(model, images)

    once, twice = panels(model, photo(batch=1), logits), panels(model, photo(batch=1), predict)
    for a, b in zip(once.items(), twice.items(), strict=True):
        assert a[0] == b[0]
        np.testing.assert_array_equal(a[1], b[1])


class Bypassed(nn.Module):
    def __init__(self, trunk):
        super().__init__()
        self.trunk = trunk

    def forward(self, images):
        return images


@pytest.mark.parametrize("verb", [panels, visualize, lambda model, image: contact_sheet(model, [image]), "animate"])
def test_a_model_that_does_not_run_its_vit(model, tmp_path, verb):
    verb = (lambda model, image: animate(model, [image], tmp_path / "film.gif")) if verb == "animate" else verb
    panels(model, photo(batch=1))
    with pytest.raises(ValueError, match="the forward of Bypassed did not run the ViT"):
        verb(Bypassed(model), photo(batch=1)[0])
    assert not any(tmp_path.iterdir())
