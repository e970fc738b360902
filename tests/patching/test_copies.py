"""Copies, state dicts, and what keeps what alive."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from algm_patch import apply_algm, remove_algm
from tests.support.contract import trace
from tests.support.models import build, photo, read_every_block

SETTINGS: dict[str, Any] = {"clap_layer": 2, "gbm_layers": [3, 4], "tau": 0.5}


@pytest.mark.parametrize("state", ["unpatched", "patched", "removed"])
def test_copies_of_every_kind(state):
    model, image = build("ViT"), photo()
    patched = state == "patched"
    if state != "unpatched":
        apply_algm(model, **SETTINGS)
    if state == "removed":
        remove_algm(model)
    with torch.no_grad():
        expected = model(image)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            pickle.loads(pickle.dumps(model, protocol=2)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(twin(image), expected)
            if not patched:
                apply_algm(twin, **SETTINGS)
                continue
            assert type(twin.blocks[0]) is type(model.blocks[0])
            assert twin.algm is not model.algm
            twin.algm.tau = 2.0
            assert model.algm.tau == 0.5
            remove_algm(twin)
            assert not hasattr(twin, "algm")
            assert hasattr(model, "algm")
            assert torch.equal(model(image), expected)


def test_state_dicts_go_between_patched_and_unpatched(tmp_path):
    image = photo()
    source, target = build("ViT"), build("ViT")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.1)
    plain_keys = list(source.state_dict())
    expected = source(image)
    apply_algm(source, **SETTINGS)
    assert list(source.state_dict()) == plain_keys
    save_file(source.state_dict(), tmp_path / "patched.safetensors")
    target.load_state_dict(load_file(tmp_path / "patched.safetensors"))
    assert torch.equal(target(image), expected)
    save_file(target.state_dict(), tmp_path / "plain.safetensors")
    source.load_state_dict(load_file(tmp_path / "plain.safetensors"))
    remove_algm(source)
    assert torch.equal(source(image), expected)


@pytest.mark.parametrize("every_block", [False, True])
def test_the_handle_keeps_no_activation_alive(every_block):
    model = apply_algm(build("ViT").train(), **SETTINGS)
    if every_block:
        read_every_block(model)
    alive = []
    for module in [*model.blocks, *(block.mlp for block in model.blocks)]:
        module.register_forward_hook(lambda _, inputs, output: alive.append(weakref.ref(output)))
    output = model.forward_features(photo())
    alive.append(weakref.ref(output))
    del output
    gc.collect()
    assert [reference for reference in alive if reference() is not None] == []
    assert len(alive) == 11


def test_a_model_goes_when_its_last_user_lets_go():
    gc.collect()
    gc.disable()
    try:
        model = apply_algm(build("ViT"), **SETTINGS)
        model(photo())
        handle, trace = model.algm, weakref.ref(model.blocks[2])
        del model
        assert trace() is None
    finally:
        gc.enable()
    assert "5 blocks" in repr(handle)
    with pytest.raises(RuntimeError, match="model of this handle is gone"):
        handle.tau = 0.3


def test_a_block_copied_alone_leaves_its_model_behind():
    model = apply_algm(build("ViT"), **SETTINGS)
    block = copy.deepcopy(model.blocks[1])
    assert len(pickle.dumps(block)) < 1.1 * len(pickle.dumps(remove_algm(build_patched()).blocks[1]))
    with pytest.raises(RuntimeError, match=r"block 2 .* cannot trace"):
        block(torch.randn(1, 31, 64))
    assert type(remove_algm(block)) is timm.models.vision_transformer.Block
    assert block(torch.randn(1, 31, 64)).shape == (1, 31, 64)
    model(photo())


def build_patched():
    return apply_algm(build("ViT"), **SETTINGS)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_wrapper_has_the_handle_of_its_own_trunk(twin_of):
    whole = apply_algm(torch.nn.Sequential(build("ViT"), torch.nn.Linear(3, 2)), **SETTINGS)
    twin = twin_of(whole)
    assert twin.algm is twin[0].algm is not whole.algm
    with torch.no_grad():
        assert torch.equal(twin(photo()), whole(photo()))
        twin.algm.tau = 2.0
        assert not torch.equal(twin(photo()), whole(photo()))
    remove_algm(twin)
    assert not hasattr(twin, "algm")
    assert hasattr(whole, "algm")


class Wrapper(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = build("ViT")

    def forward(self, x):
        return self.encoder(x)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_removed_from_the_trunk_of_a_copied_wrapper_it_is_gone_from_the_wrapper(twin_of):
    whole = apply_algm(Wrapper(), **SETTINGS)
    twin = twin_of(whole)
    remove_algm(twin.encoder)
    assert trace(twin) == trace(Wrapper())
    assert whole.algm is whole.encoder.algm


def test_a_shallow_copy_shares_the_handle_with_its_model():
    model = apply_algm(build("ViT"), **SETTINGS)
    twin = copy.copy(model)
    del twin
    model(photo())
    remove_algm(model)
