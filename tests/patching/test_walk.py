"""The way of the tokens through the library is short."""

import timm
import torch

from algm_patch import apply_algm
from benchmarks.cost.walk import walk


@torch.no_grad()
def test_a_forward_pass_takes_few_calls():
    """Count calls of library functions through a ViT of three blocks: CLAP in the first, GBM in the second or third."""
    model, image = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0).eval(), torch.rand(1, 3, 224, 224)
    for layer in (2, 3):
        apply_algm(model, clap_layer=1, gbm_layers=[layer])
        model(image)
        calls = walk(lambda: model(image))
        assert 0 < len(calls) < 145
        names = [call.name for call in calls]
        assert names.count("plan_clap") == names.count("plan_gbm") == 1
        assert names.count("merges_of") == names.count("gbm_tau") == names.count("clap_tau") == 1
