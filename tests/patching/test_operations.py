"""How many operations merging adds to a forward pass: at batch 1 a GPU waits for each to be launched."""

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algm_patch import apply_algm


class Operations(TorchDispatchMode):
    """Count what computes a tensor: neither views nor questions about dtypes."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        view = function.is_view or function is torch.ops.aten._unsafe_view.default
        self.count += isinstance(result, torch.Tensor | tuple) and not view
        return result


def operations(model, images):
    with torch.no_grad(), Operations() as counted:
        model(images)
    return counted.count


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"merge_to": [0.7, 0.5], "restore": False}, 100),
        ({"merge_to": [0.7, 0.5], "restore": True}, 107),
        ({"tau": 0.0, "gbm_tau": "adaptive", "restore": False}, 94),
        ({"tau": 0.0, "gbm_tau": "adaptive", "restore": True}, 101),
    ],
    ids=str,
)
def test_two_merges_add_few_operations_to_a_forward_pass(settings, most):
    model = timm.create_model("test_vit", img_size=96, num_classes=0).eval()
    images = torch.rand(1, 3, 96, 96)
    unpatched = operations(model, images)
    apply_algm(model, clap_layer=1, gbm_layers=[3], **settings)
    assert 0 < operations(model, images) - unpatched <= most
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]
