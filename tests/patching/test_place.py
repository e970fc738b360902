"""The setting ``place`` (supplement, Tab. 4b): merging after the MLP."""

import torch

from algm_patch import apply_algm
from algm_patch.functional import clap, gbm
from tests.support import models
from tests.support.ablations import SETTINGS
from tests.support.models import build, photo


def test_after_the_mlp_the_blocks_output_merges():
    model, image = build("ViT", depth=1), photo()
    model.norm = torch.nn.Identity()
    with torch.no_grad():
        x = model.forward_features(image)
        apply_algm(model, clap_layer=1, gbm_layers=[1], tau=0.3, gbm_tau=0.0, place="after_mlp")
        found = model.forward_features(image)
    merged, local = clap(x, models.GRID, 0.3)
    merged, token_map = gbm(merged, local, layer=1, tau=0.0)
    assert merged.shape[1] < local.sizes.shape[1] < 31
    assert torch.equal(model.algm.token_map.labels, token_map.labels)
    torch.testing.assert_close(found, x)  # what was lost is restored, and nothing ran on the merged tokens
    with torch.no_grad(), model.algm.using(restore=False):
        assert torch.equal(model.forward_features(image), token_map.unmerge(merged))


def test_after_the_mlp_that_mlp_runs_on_all_tokens():
    model = build("ViT")
    lengths = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _, args, output: lengths.append(output.shape[1]))
    apply_algm(model, **SETTINGS, place="after_mlp")
    model.forward_features(photo())
    counts = model.algm.tokens_per_layer
    assert lengths == [31, *counts[:-1]]
    assert counts[1] < 31
