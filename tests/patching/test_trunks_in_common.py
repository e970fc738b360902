"""Trunks that share modules, are inside each other, or are patched before what is around them."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.core.compiling import ONE_GRAPH
from tests.support.contract import trace
from tests.support.models import build, photo
from tests.support.several import Alternating, EncoderAndDecoder, Pair, Siamese, TwoSequences

SETTINGS: dict[str, Any] = {"gbm_layers": [2], "tau": 0.5}


@torch.no_grad()
def test_one_trunk_used_twice_is_one_vit():
    torch.manual_seed(0)
    model: Any = Siamese()
    image = photo()
    expected = model(image)
    assert apply_algm(model, tau=1.05, gbm_layers=[]).algm is model.encoder.algm
    assert torch.equal(model(image), expected)
    apply_algm(model, trunks="same", **SETTINGS)
    with model.algm.runtime.collecting() as passes:
        model(image)
    assert len(passes) == 2
    assert passes[0].token_map.labels.shape == passes[1].token_map.labels.shape
    assert not torch.equal(passes[0].token_map.labels, passes[1].token_map.labels)
    remove_algm(model)
    assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize(("build_model", "blocks"), [(Alternating, "frame_blocks"), (EncoderAndDecoder, "blocks")])
def test_of_sequences_behind_one_patch_embedding_one_is_named(build_model, blocks):
    torch.manual_seed(0)
    model, image = build_model(), photo()
    before, expected = trace(model), model(image)
    for trunks in (None, "all"):
        with pytest.raises(ValueError, match=r"holds 2 ViTs: .*|have one patch embedding"):
            apply_algm(model, trunks=trunks)
    assert trace(model) == before
    apply_algm(model, trunks=blocks, tau=1.05, gbm_layers=[])
    assert torch.equal(model(image), expected)
    apply_algm(model, **SETTINGS)
    assert not torch.equal(model(image), expected)
    assert model.algm.tokens_per_layer[1] < 30
    other = next(name for name in ("global_blocks", "decoder") if hasattr(model, name))
    with pytest.raises(ValueError, match=rf"is patched already for the blocks in {blocks}, which .* {other} feeds"):
        apply_algm(model, trunks=other, **{**SETTINGS, "clap_layer": 2})
    remove_algm(model)
    assert trace(model) == before


@torch.no_grad()
def test_a_trunk_inside_a_trunk():
    """Whichever is patched first, and removed first."""
    image = photo()
    for order in (["teacher", "blocks"], ["blocks", "teacher"], ["all"]):
        for removed in (["teacher"], []):
            model = build("ViT", depth=3)
            model.teacher = build("ViT", depth=2)
            before, expected = trace(model), model(image)
            for trunk in order:
                apply_algm(model, trunks=trunk, **SETTINGS)
            assert set(model.algm) == {"blocks", "teacher"}
            assert not torch.equal(model(image), expected)
            for path in removed:
                remove_algm(model.get_submodule(path))
                assert model.algm.tokens_per_layer[0] < 31
            remove_algm(model)
            assert trace(model) == before
            assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("order", [["patch_embed", "frame_blocks"], ["frame_blocks", "patch_embed"], None])
def test_one_patch_embedding_feeds_a_trunk_and_the_blocks_on_top_of_it(order):
    torch.manual_seed(0)
    model: Any = TwoSequences()
    image = photo()
    before, expected = trace(model), model(image)
    apply_algm(model, **SETTINGS)
    assert model.algm is model.patch_embed.algm
    remove_algm(model)
    for trunks in order or [["patch_embed", "frame_blocks"]]:
        apply_algm(model, trunks=trunks, **SETTINGS)
    assert set(model.algm) == {"patch_embed", "frame_blocks"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = model(image)
    assert all(each.tokens_per_layer[1] < 30 for each in model.algm.values())
    twin = copy.deepcopy(model)
    model.algm.update(tau=1.05, gbm_layers=[])
    assert torch.equal(model(image), expected)
    assert torch.equal(twin(image), merged)
    remove_algm(model.patch_embed)
    assert not hasattr(model.patch_embed, "algm")
    assert model.algm.tau == 1.05  # of the blocks on top
    apply_algm(model, **SETTINGS)
    model(image)
    assert model.algm.tokens_per_layer[1] < 30
    remove_algm(model)
    assert trace(model) == before
    assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize(
    ("build_model", "trunks", "settings"),
    [
        (Pair, "all", {"gbm_layers": [2], "merge_to": 0.6}),
        (TwoSequences, ["patch_embed", "frame_blocks"], SETTINGS),
    ],
    ids=["beside each other", "on top"],
)
@pytest.mark.skipif(not ONE_GRAPH, reason="whole graphs need a newer torch")
def test_several_in_one_graph(build_model, trunks, settings):
    torch.compiler.reset()
    torch.manual_seed(0)
    model, image = apply_algm(build_model(), trunks=trunks, **settings), photo(batch=1)
    expected = model(image)
    counts = {path: handle.tokens_per_layer for path, handle in model.algm.items()}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(image), expected)  # what was restored, to rounding
        assert {path: handle.tokens_per_layer for path, handle in model.algm.items()} == counts
    torch.testing.assert_close(torch.export.export(model, (image,)).module()(image), expected)


@torch.no_grad()
def test_a_patched_backbone_in_a_later_model():
    backbone = apply_algm(build("ViT", depth=3), **SETTINGS)
    whole = nn.Sequential(backbone, nn.Linear(3, 2))
    assert not hasattr(whole, "algm")
    apply_algm(whole, gbm_layers=[], tau=0.9)
    assert whole.algm is backbone.algm
    assert whole.algm.tau == 0.9
    both: Any = nn.ModuleDict({"new": build("ViT", depth=2), "old": whole})
    apply_algm(both, trunks="all", **SETTINGS)
    assert dict(both.algm) == {"new": both["new"].algm, "old.0": backbone.algm}
    remove_algm(both["old"])
    assert both.algm is both["new"].algm
    assert not hasattr(backbone, "algm")


class Bypassing(Pair):
    """Run the parts of the blocks of one of its trunks itself."""

    def forward(self, image):
        x = self.coarse.patch_embed(image)
        for block in self.coarse.blocks:
            x = x + block.mlp(block.norm2(x))
        return self.fine(image).sum() + x.sum()


def test_each_is_watched():
    model = apply_algm(Bypassing(), trunks="all", **SETTINGS)
    with pytest.warns(UserWarning, match="the patch embedding of VisionTransformer ran, but none of its blocks did"):
        model(photo())
    remove_algm(model.coarse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(photo())


@torch.no_grad()
def test_methods_that_are_known_may_run_other_blocks_than_those_named():
    """The chunks of DINOv2, and a decoder behind timm's own method: the tokens leave the named blocks unmerged."""
    image = photo(batch=1)
    chunked: Any = build("ViT", depth=4)
    chunked.blocks = nn.Sequential(chunked.blocks[:2], chunked.blocks[2:])
    whole: Any = build("ViT", depth=2)
    whole.decoder = build("ViT", depth=2).blocks
    for model, path in ((chunked, "blocks.0"), (chunked, "blocks.1"), (whole, "decoder")):
        before, expected = trace(model), model.forward_features(image)
        with pytest.raises(ValueError, match=r"of which one can be patched\. .* if they are chunks of one"):
            apply_algm(model, **SETTINGS)
        apply_algm(model, trunks=path, **SETTINGS)
        found = model.forward_features(image)
        found = model.decoder(found) if path == "decoder" else found
        assert model.algm.tokens_per_layer[0] < 31
        assert found.shape == expected.shape
        assert pickle.loads(pickle.dumps(model)).forward_features(image).shape == expected.shape
        remove_algm(model)
        assert trace(model) == before


def test_all_is_refused_if_one_cannot_be_patched():
    model: Any = Pair()
    model.coarse.blocks[1].forward = lambda x: x
    before = trace(model)
    with pytest.raises(ValueError, match=r"coarse\.blocks\[1\] cannot be patched: .* forward set on the instance"):
        apply_algm(model, trunks="all", **SETTINGS)
    assert trace(model) == before
