"""The setting ``compare`` (supplement, Tab. 4f): queries, keys and values in place of tokens."""

import re
from typing import Any

import pytest
import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from algm_patch import apply_algm, calibrate
from algm_patch.core.matching import best_matches, window_similarity
from tests.support import cases_hub, models
from tests.support.ablations import METRICS, SETTINGS, case_of, seeded_tokens
from tests.support.cases import CASES
from tests.support.models import blocks_of, build, photo


class FusedAttention(TorchFunctionMode):
    """Notes the queries, keys and values that fused attention gets, all heads together."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append([part.transpose(1, 2).flatten(2) for part in args[:3]])
        return function(*args, **kwargs or {})


FUSED = [
    ("timm ViT", METRICS),
    ("timm relative positions", ["key", "value"]),
    ("timm DINOv3", ["value"]),  # the others are turned there
    ("timm NaFlex, RoPE", ["value"]),
    ("transformers ViT", METRICS),
    ("transformers DINOv2", METRICS),
    ("transformers DINOv3", ["value"]),
    ("transformers BEiT, bias per layer", METRICS),
    ("transformers Data2Vec, bias per layer", METRICS),
    ("transformers CLIP", METRICS),
    ("transformers ViT-MAE", METRICS),
    ("transformers DPT", METRICS),
]


@pytest.mark.parametrize(("family", "metric"), [(family, metric) for family, metrics in FUSED for metric in metrics])
def test_what_is_compared_is_what_fused_attention_is_given(family, metric):
    case = case_of(family)
    model, image = case.build(), case.image()
    with FusedAttention() as attention:
        length = seeded_tokens(case, model, image).shape[1]
    assert len(attention.calls) >= 5
    features = attention.calls[1][METRICS.index(metric)][:, -30:]
    apply_algm(model, clap_layer=2, gbm_layers=[], compare=metric, tau=0.0)
    assert seeded_tokens(case, model, image).shape[1] == length
    found = model.algm.window_similarity
    # relpos scales its queries before: cosines do not mind
    torch.testing.assert_close(found, window_similarity(features, models.GRID, (2, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", ["timm DINOv3", "Segmenter mask transformer", "hub DINOv2", "timm DeepSeek"])
def test_what_is_compared_is_the_projections_own_output_before_any_turn(family, metric):
    case = case_of(family)
    model, image = case.build(), case.image()
    block = blocks_of(model)[1]
    inputs: list[Any] = []
    hook = block.norm1.register_forward_hook(lambda _, args, output: inputs.append(output))
    seeded_tokens(case, model, image)
    hook.remove()
    part = slice(*(64 * (METRICS.index(metric) + i) for i in (0, 1)))
    bias = block.attn.qkv.bias
    features = linear(inputs[0], block.attn.qkv.weight[part], None if bias is None else bias[part])
    apply_algm(model, clap_layer=2, gbm_layers=[], compare=metric, tau=0.0)
    seeded_tokens(case, model, image)
    patches = model.algm.last_pass.grid
    expected = window_similarity(features[:, -patches[0] * patches[1] :].detach(), patches, (2, 2))
    torch.testing.assert_close(model.algm.window_similarity, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "pick"])
def test_in_one_layer_global_matching_compares_the_features_of_windows_merged(reduce):
    model, image = build("ViT"), photo()
    seen = []
    apply_algm(model, clap_layer=2, gbm_layers=[2], tau=0.3, compare="key", reduce=reduce, size_aware=False)
    model.blocks[1].attn.qkv.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    model.forward_features(image)
    plans = model.algm.last_pass.blocks[1].plans
    features = plans["CLAP"](seen[0].chunk(3, -1)[1])
    assert features.shape[1] < 31
    assert torch.equal(plans["GBM"].similarity, best_matches(features, 1)[0])
    assert len(seen) == 1  # no second computation


def test_keys_merge_other_tokens_than_the_tokens_themselves():
    model, image = build("ViT"), photo()
    labels = []
    for metric in ("token", *METRICS):
        apply_algm(model, **SETTINGS, compare=metric)
        model.forward_features(image)
        labels.append(model.algm.token_map.labels)
    assert not any(a.equal(b) for i, a in enumerate(labels) for b in labels[:i])


REFUSED = [
    ("timm EVA", "EvaBlock"),
    ("timm BEiT", "Block"),
    ("timm ParallelThingsBlock", "ParallelThingsBlock"),
    ("mmseg ViT", "TransformerEncoderLayer"),
    ("open_clip", "ResidualAttentionBlock"),
    ("open_clip, custom blocks", "CustomResidualAttentionBlock"),
]


@pytest.mark.parametrize(("family", "block"), REFUSED)
def test_attention_whose_projection_is_not_called_is_refused(family, block):
    model = case_of(family).build()
    before = [list(part.__dict__) for part in model.modules()]
    message = rf"compare='key': in block 1 of \w+ \({block}\) there is no one module .* Pass compare='token'"
    with pytest.raises(ValueError, match=message):
        apply_algm(model, compare="key", gbm_layers=[3])
    assert [list(part.__dict__) for part in model.modules()] == before
    apply_algm(model, compare="key", clap_layer=None, gbm_layers=[])  # nothing merges
    with pytest.raises(ValueError, match="in block 3"):
        model.algm.gbm_layers = [3]
    assert model.algm.gbm_layers == ()


@pytest.mark.parametrize("name", CASES)
def test_every_family_compares_values_or_is_refused_before_it_runs(name):
    """A wrong declaration of an adapter would fail in the first forward pass."""
    case = CASES[name]
    model, image = case.build(), case.image()
    try:
        apply_algm(model, clap_layer=1, gbm_layers=[3], compare="value", tau=0.3, gbm_tau=0.3)
    except ValueError as error:
        assert "Pass compare='token'" in str(error)  # noqa: PT017
        return
    length = seeded_tokens(case, model, image).shape[1]
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < length


def test_attention_of_another_library_is_refused():
    class HeadsFirst(torch.nn.Module):
        """Attention whose projection orders its outputs by head, then by query, key and value."""

        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(64, 192)

        def forward(self, x, attn_mask=None):
            return x

    model = build("ViT")
    model.blocks[0].attn = HeadsFirst()
    with pytest.raises(ValueError, match="of another library"):
        apply_algm(model, compare="key")


def test_attention_that_leaves_fewer_images_is_refused_where_it_does():
    model = cases_hub.dino(drop_path_rate=0.5, drop_path_uniform=True)
    apply_algm(model, compare="key", tau=0.3)
    image = photo("DINOv2")
    model.eval()(image)
    with pytest.raises(ValueError, match=r"attn.qkv, which left \[\[1, 31, 192\]\] where ALGM expected \[2, 31, D\]"):
        model.train()(image)


def test_hooks_on_the_projection_still_fire_and_may_change_what_is_compared():
    model, image = build("ViT"), photo()
    apply_algm(model, clap_layer=2, gbm_layers=[], compare="key", tau=0.0)
    model.blocks[1].attn.qkv.register_forward_hook(lambda _, args, output: torch.ones_like(output))
    model.forward_features(image)
    torch.testing.assert_close(model.algm.window_similarity, torch.ones(2, 3, 2))


def test_a_calibrated_threshold_is_that_of_its_features_and_place():
    model, image = build("ViT"), photo(batch=4)
    apply_algm(model, gbm_layers=[])
    ways = [(compare, place) for compare in ("token", "key") for place in ("before_mlp", "after_mlp")]
    taus = {}
    for way in ways:
        model.algm.update(**dict(zip(("compare", "place"), way, strict=True)))
        taus[way] = calibrate(model, image)
        for compare, place in ways:
            with model.algm.using(compare=compare, place=place):
                model.forward_features(image)
                used = re.search(r"layer 1: CLAP 30 -> .*, tau (.*)", str(model.algm))
                assert used is not None
                assert (used[1] == f"{taus[way]:.4f}") == ((compare, place) == way)
        assert model.algm.calibrated_tau == taus[way]
    assert len(set(taus.values())) == 3  # the MLP does not move the keys
