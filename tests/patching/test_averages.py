"""Averages of weights, made before and after the patch."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

from algm_patch import apply_algm, remove_algm
from tests.support.models import build, photo
from tests.support.wrapping import SETTINGS

AVERAGES = {
    "timm": (lambda model: ModelEmaV3(model, decay=0.75), lambda average, model: average.update(model, step=10)),
    "torch": (
        lambda model: AveragedModel(model, avg_fn=lambda average, new, count: 0.75 * average + 0.25 * new),
        lambda average, model: average.update_parameters(model),
    ),
}


def one_update(average, update, model):
    """Move the weights of the model, then those of its average."""
    start = copy.deepcopy(average.module.state_dict())
    if isinstance(average, AveragedModel):
        update(average, model)  # the first one copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    update(average, model)
    moved = {name: 0.75 * start[name] + 0.25 * value for name, value in model.state_dict().items()}
    torch.testing.assert_close(dict(average.module.state_dict()), moved)
    assert not torch.equal(moved["cls_token"], start["cls_token"])


@torch.no_grad()
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_before_the_patch_is_the_plain_model(kind):
    (make, update), model, image = AVERAGES[kind], build("ViT", depth=3), photo()
    average = make(model)
    apply_algm(model, **SETTINGS)
    one_update(average, update, model)
    assert not hasattr(average.module, "algm")
    model.load_state_dict(average.module.state_dict())
    merged = model(image)
    assert not torch.equal(merged, average.module(image))
    assert torch.equal(remove_algm(model)(image), average.module(image))
    assert torch.equal(apply_algm(average.module, **SETTINGS)(image), merged)


@torch.no_grad()
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_after_the_patch_has_a_handle_of_its_own(kind):
    (make, update), model, image = AVERAGES[kind], apply_algm(build("ViT", depth=3), **SETTINGS), photo()
    model(image)
    handle, past = model.algm, model.algm.last_pass
    average = make(model)
    one_update(average, update, model)
    assert model.algm is handle is not average.module.algm
    model.algm.tau = 2.0
    merged = average(photo(seed=1))
    assert average.module.algm.tau == 0.5
    assert model.algm.last_pass is past
    plain = build("ViT", depth=3)
    plain.load_state_dict(average.module.state_dict())
    assert torch.equal(apply_algm(plain, **SETTINGS)(photo(seed=1)), merged)
    model.load_state_dict(average.module.state_dict())
    model.algm.tau = 0.5
    assert torch.equal(model(photo(seed=1)), merged)
    remove_algm(average)
    assert torch.equal(average(image), remove_algm(plain)(image))
    assert model.algm is handle
