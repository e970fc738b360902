"""Models inside what others wrap around them, patched before and after."""

import pytest
import torch
from models import build, photo

from algm_patch import apply_algm, remove_algm

SETTINGS = {"gbm_layers": [3], "tau": 0.5}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"]))


WRAPPERS = {
    "DDP": torch.nn.parallel.DistributedDataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "PEFT LoRA": with_lora,
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("patched", ["before", "after"])
def test_wrapped_models(wrap, patched):
    torch.compiler.reset()
    image = photo()
    with torch.no_grad():
        plain = build("ViT")(image)
        expected = apply_algm(build("ViT"), **SETTINGS)(image)
    model = build("ViT")
    whole = wrap(apply_algm(model, **SETTINGS)) if patched == "before" else apply_algm(wrap(model), **SETTINGS)
    with torch.no_grad():
        assert torch.equal(whole(image), expected)
        assert model.algm.tokens_per_layer[-1] < 31
    whole(image).sum().backward()
    trained = [parameter for parameter in model.blocks.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    remove_algm(whole)
    assert not hasattr(model, "algm")
    with torch.no_grad():
        torch.testing.assert_close(whole(image), plain, atol=0, rtol=0)
