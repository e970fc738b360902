"""Tracers that would keep the merges of one image are refused by name."""

from typing import Any

import pytest
import torch

from algm_patch import apply_algm, remove_algm
from tests.support.models import build, photo

SETTINGS: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}


@pytest.mark.parametrize("settings", [SETTINGS, {"gbm_layers": [3], "merge_to": 0.6}], ids=["thresholds", "counts"])
@pytest.mark.parametrize("ran_before", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tracing_and_scripting_are_refused_by_name(settings, ran_before):
    model, image = apply_algm(build("ViT"), **settings), photo()
    with torch.no_grad():
        expected = model(image)
    if not ran_before:
        apply_algm(model, **settings)  # newly patched, it knows no forward pass
    described, hooks = str(model.algm), [len(part._forward_hooks) for part in model.modules()]
    x = model._pos_embed(model.patch_embed(image)).detach() if ran_before else image
    for refused, traced in (
        (r"torch\.jit\.trace .*torch\.export\.export", lambda: torch.jit.trace(model, (image,))),
        (r"torch\.jit\.trace .*torch\.export\.export", lambda: torch.jit.trace(model.blocks[2], (x,))),
        (r"torch\.jit\.trace .*dynamo=True", lambda: torch.jit.trace(model.patch_embed.proj, (image,))),
        (r"torch\.jit\.script .*torch\.export", lambda: torch.jit.script(model)),
        (r"torch\.jit\.script .*torch\.export", lambda: torch.jit.script(model.blocks[0])),
    ):
        with pytest.raises(RuntimeError, match=refused):
            traced()
        assert ran_before or str(model.algm) == described
        assert [len(part._forward_hooks) for part in model.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(model(image), expected)
        traced = torch.jit.trace(remove_algm(model), (image,))
        torch.testing.assert_close(traced(image), model(image))
    torch.jit.script(model)


def test_a_block_without_tokens_answers_as_the_class_does():
    plain, model = build("ViT"), apply_algm(build("ViT"))
    for call in (lambda block: block(), lambda block: block(attn_mask=None)):
        with pytest.raises(TypeError) as expected:
            call(plain.blocks[0])
        with pytest.raises(TypeError) as found:
            call(model.blocks[0])
        assert str(found.value) == str(expected.value)


class Around(torch.nn.Module):
    """A model that was not patched, around one that was."""

    def __init__(self, vit):
        super().__init__()
        self.vit = vit

    def forward(self, x):
        return self.vit.norm(self.vit.blocks(self.vit.patch_embed(x)))


@pytest.mark.parametrize("around", [None, Around, torch.nn.Sequential])
@pytest.mark.parametrize("whole", [False, True])
def test_tracing_by_fx_is_refused_by_name(around, whole):
    vit = build("average pooling")
    model = around(vit) if around else vit
    torch.fx.symbolic_trace(model)
    apply_algm(model if whole else vit, **SETTINGS)
    with pytest.raises(RuntimeError, match=r"create_feature_extractor.*forward hooks on the blocks"):
        torch.fx.symbolic_trace(model)
    vit(photo("average pooling"))
    remove_algm(vit)
    torch.fx.symbolic_trace(model)
