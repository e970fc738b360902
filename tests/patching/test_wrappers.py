"""Models inside what others wrap around them, patched before and after."""

import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel

from algm_patch import Settings, apply_algm, remove_algm, tune
from tests.support.models import build, photo
from tests.support.wrapping import SETTINGS, sharded, trained


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"], lora_alpha=8, r=8))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DDP": DistributedDataParallel,
    "FSDP2": sharded,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DDP, torch.compile": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "PEFT LoRA": with_lora,
}
ORDERS = [*product(WRAPPERS, ["before", "after"])]
ORDERS.remove(("DDP, torch.compile", "after"))  # slow, and one of DDP and one of torch.compile are there


def in_lora(gradients, model):
    """Return the gradients of LoRA's two matrices that follow from those of the plain weights. B begins as zero."""
    found = {}
    for layer, block in enumerate(model.blocks):
        name, a = f"blocks.{layer}.attn.qkv", block.attn.qkv.lora_A["default"].weight.detach()
        found[f"{name}.lora_A.default.weight"] = torch.zeros_like(a)
        found[f"{name}.lora_B.default.weight"] = gradients[f"{name}.weight"] @ a.mT
    return found


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("wrapper", "patched"), ORDERS)
def test_wrapped_models_are_the_plainly_patched_one(wrapper, patched):
    torch.compiler.reset()
    wrap, image, model = WRAPPERS[wrapper], photo(), build("ViT", depth=3).train()
    plain = build("ViT", depth=3).train()(image)
    expected, gradients = trained(apply_algm(build("ViT", depth=3).train(), **SETTINGS), image)
    keys = list(wrap(build("ViT", depth=3)).state_dict())
    whole = wrap(apply_algm(model, **SETTINGS)) if patched == "before" else apply_algm(wrap(model), **SETTINGS)
    output, found = trained(whole, image)
    assert torch.equal(output, expected)
    assert model.algm.tokens_per_layer == [13, 11, 11]
    assert "given back after layer 3" in str(model.algm)
    lora = wrapper == "PEFT LoRA"
    torch.testing.assert_close(
        found, in_lora(gradients, model) if lora else gradients, atol=lora * 1e-5, rtol=lora * 1e-4
    )
    assert list(whole.state_dict()) == keys
    if (wrapper, patched) == ("FSDP2", "before"):
        for change in (remove_algm, lambda model: apply_algm(model, **SETTINGS)):
            with pytest.raises(ValueError, match=r"changed after apply_algm.* such as fully_shard, goes before"):
                change(whole)
        assert torch.equal(whole(image), expected)
        model.algm.tau = model.algm.gbm_tau = 2.0
    else:
        remove_algm(whole)
        assert not hasattr(model, "algm")
    assert torch.equal(whole(image), plain)


def test_blocks_that_are_wrapped_already_are_refused():
    model = build("ViT", depth=3)
    for layer, block in enumerate(model.blocks):
        model.blocks[layer] = checkpoint_wrapper(block)
    with pytest.raises(ValueError, match=r"CheckpointWrapper wraps a block\. Call apply_algm before the blocks are"):
        apply_algm(model)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_blocks_may_be_wrapped_for_checkpointing_after_the_patch(mode):
    plain, model = (getattr(apply_algm(build("ViT", depth=3), **SETTINGS), mode)() for _ in range(2))
    for layer, block in enumerate(model.blocks):
        model.blocks[layer] = checkpoint_wrapper(block)
    (expected, gradients), (output, found) = trained(plain, photo()), trained(model, photo())
    assert torch.equal(output, expected)
    found = {name.replace("_checkpoint_wrapped_module.", ""): gradient for name, gradient in found.items()}
    torch.testing.assert_close(found, gradients, atol=0, rtol=0)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("patched", ["before", "after"])
def test_checkpoints_of_shards_are_those_of_the_plain_model(patched):
    plain, whole = build("ViT", depth=3), StateDictOptions(full_state_dict=True)
    expected = {name: value.clone() for name, value in plain.state_dict().items()}
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(1)
    model = sharded(apply_algm(plain, **SETTINGS)) if patched == "before" else apply_algm(sharded(plain), **SETTINGS)
    set_model_state_dict(model, dict(expected), options=whole)
    saved = get_model_state_dict(model, options=whole)
    assert list(saved) == list(expected)
    torch.testing.assert_close(dict(saved), expected, atol=0, rtol=0)
    assert torch.equal(model(photo()), apply_algm(build("ViT", depth=3), **SETTINGS)(photo()))


@pytest.mark.usefixtures("process_group")
def test_hooks_of_the_user_on_sharded_blocks_see_the_full_grid():
    model, seen = apply_algm(sharded(build("ViT", depth=3)), **SETTINGS), []
    model.blocks[1].register_forward_hook(lambda block, inputs, output: seen.append(output.shape))
    model(photo())
    assert seen == [(2, 31, 64)]
    assert "given back after layer 2, 3" in str(model.algm)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("patched", ["before", "after"])
def test_shards_that_compute_in_bfloat16(patched):
    """Recomputation casts every input anew, into another storage. That is refused, not guessed."""
    cast = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    model, image = build("ViT", depth=3).train(), photo()
    gradients = trained(apply_algm(build("ViT", depth=3).train(), **SETTINGS), image)[1]
    model = (
        sharded(apply_algm(model, **SETTINGS), mp_policy=cast)
        if patched == "before"
        else apply_algm(sharded(model, mp_policy=cast), **SETTINGS)
    )
    found = trained(model, image)[1]
    assert model.algm.tokens_per_layer == [13, 11, 11]
    for name, gradient in found.items():
        assert torch.cosine_similarity(gradient.flatten(), gradients[name].flatten(), dim=0) > 0.99, name
    model.set_grad_checkpointing()
    with pytest.raises(RuntimeError, match=r"recomputed in the backward pass from a copy .* output_dtype"):
        trained(model, image)


@pytest.mark.usefixtures("process_group")
def test_measured_settings_know_no_weights_of_a_sharded_model(tmp_path):
    tune(build("ViT", depth=3), photo(batch=8), keep=0.5, budget="60s").save(tmp_path / "settings.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = apply_algm(sharded(build("ViT", depth=3)), **Settings.load(tmp_path / "settings.json"))
    assert model(photo()).shape == (2, 3)
