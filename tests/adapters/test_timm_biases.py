"""timm's ViTs whose attention adds relative biases of its own."""

import pytest
import torch

from algm_patch import apply_algm
from algm_patch.adapters.timm_relpos import own_bias_between_groups
from algm_patch.functional import TokenMap
from tests.support.contract import SETTINGS
from tests.support.models import build, photo


@torch.no_grad()
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("kind", ["bias", "mlp", "mlp-swin"])
def test_relative_biases_between_groups_are_those_of_all_tokens_paired(kind, prefix):
    rel_pos = build("relative positions", rel_pos_type=kind, class_token=bool(prefix)).blocks[0].attn.rel_pos
    patches = torch.stack([torch.arange(30) // 2, torch.arange(30) % 15])
    labels = torch.cat([torch.zeros(2, prefix, dtype=torch.int64), patches + prefix], 1)
    token_map = TokenMap(labels, torch.ones(2, prefix + 15))
    found = own_bias_between_groups(rel_pos, token_map)
    torch.testing.assert_close(found, token_map.pair(rel_pos.get_bias()))


@torch.no_grad()
@pytest.mark.parametrize("name", ["BEiT", "relative positions"])
def test_hooks_on_attention_with_a_bias_are_not_skipped_in_silence(name):
    model = apply_algm(build(name), **SETTINGS)
    model.blocks[3].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"has hooks, .* on its qkv or proj, or call remove_algm"):
        model.forward_features(photo(name))


@pytest.mark.parametrize("name", ["BEiT", "relative positions"])
def test_attention_of_another_class_is_refused(name):
    """It may add its bias in another way."""
    model = build(name)
    own = type(model.blocks[1].attn)
    model.blocks[1].attn.__class__ = type("MyAttention", (own,), {"forward": lambda self, x, **bias: x})
    with pytest.raises(ValueError, match="of its attention, MyAttention, ALGM does not know"):
        apply_algm(model)
