"""apply_algm and remove_algm: what they leave, and what they refuse."""

import pytest
import timm
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support.contract import trace
from tests.support.models import build, photo


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gbm_layers": [6]}, ValueError, "gbm_layers names layer 6, but VisionTransformer has 5 blocks"),
        ({"clap_layer": 7, "gbm_layers": []}, ValueError, "clap_layer names layer 7"),
        ({"tau": "best"}, ValueError, "'auto', 'paper'"),
        ({"window": "2x2"}, TypeError, "height, width"),
    ],
)
def test_an_error_leaves_the_model_as_it_was(arguments, error, message):
    model, image = build("ViT"), photo()
    with pytest.raises(error, match=message):
        apply_algm(model, **arguments)
    assert type(model.blocks[0]) is timm.models.vision_transformer.Block
    assert "algm" not in model.__dict__
    apply_algm(model, tau=0.5)
    with torch.no_grad():
        patched = model(image)
        with pytest.raises(error, match=message):
            apply_algm(model, **arguments)
        assert torch.equal(model(image), patched)


class FinalBlock(timm.models.vision_transformer.Block):
    """A block whose class takes no subclass."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def test_a_class_that_takes_no_subclass_is_refused_before_anything_is_patched():
    model = build("ViT")
    model.blocks[4].__class__ = FinalBlock
    expected = trace(model)
    with pytest.raises(ValueError, match=r"FinalBlock takes no subclass, .* raised TypeError: final"):
        apply_algm(model)
    assert trace(model) == expected


def test_an_attribute_of_that_name_is_not_overwritten():
    model = build("ViT")
    model.algm = "mine"
    with pytest.raises(ValueError, match="has an attribute 'algm' of its own"):
        apply_algm(model)
    assert model.algm == "mine"


def test_what_is_not_patched_cannot_be_removed():
    with pytest.raises(ValueError, match="VisionTransformer is not patched"):
        remove_algm(build("ViT"))


@pytest.mark.parametrize("which", ["whole", "trunk", "blocks"])
def test_removed_from_anywhere_it_is_gone_everywhere(which):
    trunk = build("ViT")
    whole = apply_algm(nn.Sequential(trunk, nn.ReLU()))
    remove_algm({"whole": whole, "trunk": trunk, "blocks": trunk.blocks}[which])
    assert not hasattr(whole, "algm")
    assert not hasattr(trunk, "algm")
    assert all("algm_part" not in module.__dict__ for module in whole.modules())
    assert type(trunk.patch_embed.proj) is nn.Conv2d


def test_applied_again_through_another_module():
    trunk = build("ViT")
    whole = apply_algm(nn.Sequential(trunk, nn.ReLU()), tau=0.5)
    apply_algm(trunk, tau=0.7)
    assert whole.algm is trunk.algm
    assert whole.algm.tau == 0.7


def test_a_class_changed_since_must_be_restored_first():
    """fully_shard and parametrizations change classes."""
    model = apply_algm(build("ViT"))
    block = model.blocks[1]
    patched = type(block)
    block.__class__ = type("Sharded", (patched,), {})
    with pytest.raises(ValueError, match=r"class of Sharded was changed after apply_algm"):
        remove_algm(model)
    assert type(model.blocks[0]) is patched
    block.__class__ = patched
    remove_algm(model)


@torch.no_grad()
def test_a_model_looks_the_same_patched():
    model = build("ViT")
    names, text = [name for name, _ in model.named_modules()], repr(model)
    apply_algm(model)
    assert [name for name, _ in model.named_modules()] == names
    assert repr(model) == text
    assert isinstance(model.blocks[0], timm.models.vision_transformer.Block)
    assert isinstance(model, timm.models.VisionTransformer)
    assert len({type(block) for block in model.blocks}) == 1


def test_applied_again_it_keeps_its_handle():
    model = apply_algm(build("ViT"), tau=0.5)
    handle = model.algm
    apply_algm(model, tau=0.7)
    assert model.algm is handle
    assert handle.tau == 0.7


@pytest.mark.parametrize("part", ["blocks", "patch_embed"])
def test_parts_of_another_patched_model_are_refused(part):
    first, second = apply_algm(build("ViT")), build("ViT")
    setattr(second, part, getattr(first, part))
    with pytest.raises(ValueError, match=r"patched already, as part of another model. Call remove_algm on that"):
        apply_algm(second)
    first(photo())
    remove_algm(first)
    apply_algm(second)(photo())
