"""torch.hub's DINOv2 patched for training: its stochastic depth, gradients and recomputation."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm
from algm_patch.core.layer_tokens import LayerTokens
from algm_patch.patching.find_vit import find_vit
from tests.support.cases_hub import dino
from tests.support.contract import SETTINGS
from tests.support.groups import tokens_of_groups
from tests.support.models import photo
from tests.support.training import assert_same, gradients


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_dino_stochastic_depth_is_the_blocks_own(rate):
    model, image = dino(drop_path_rate=rate, drop_path_uniform=True).train(), photo("DINOv2", batch=5)
    evaluated = model.eval()(image)
    model.train()
    torch.manual_seed(1)
    expected = model(image)
    assert not torch.allclose(expected, evaluated)
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=1.0, gbm_tau=1.0)
    torch.manual_seed(1)
    found = model(image)
    assert set(model.algm.tokens_per_layer) == {31}
    assert torch.equal(found, expected)


@torch.no_grad()
def test_dino_stochastic_depth_gives_each_image_its_own_sizes():
    vit, x = find_vit(dino(drop_path_rate=0.5, drop_path_uniform=True))[1], torch.randn(4, 4, 64)
    block, adapter = vit.blocks[0], vit.adapters[0]
    tokens = tokens_of_groups()
    full = adapter.attention_half(block, x, tokens)
    plain = adapter.attention_half(block, x, LayerTokens(tokens.token_map, None, 1))
    assert not torch.allclose(full[0], plain[0])
    torch.manual_seed(3)
    kept = torch.randperm(4)[:2]
    assert kept.tolist() != [0, 1]
    torch.manual_seed(3)
    found = adapter.attention_half(block.train(), x, tokens)
    expected = x.clone()
    expected[kept] += 2 * (full - x)[kept]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_dino_training_and_recomputation(rate):
    model = apply_algm(dino(drop_path_rate=rate).train(), **SETTINGS)
    images = [photo("DINOv2", seed=1), photo("DINOv2", seed=2)]

    def patches(image):
        return model.forward_features(image)["x_norm_patchtokens"]

    def gradients_of(forward):
        torch.manual_seed(0)
        outputs = [forward(image) for image in images]
        return gradients(model, outputs[0].square().mean() + outputs[1].pow(3).mean())

    expected = gradients_of(patches)
    assert model.algm.tokens_per_layer[-1] < 31
    assert len(expected) == len(list(model.parameters())) - 1  # the mask token is not used
    recomputed = gradients_of(lambda image: checkpoint(patches, image, use_reentrant=False))
    assert_same(recomputed, expected, atol=0, rtol=0)
