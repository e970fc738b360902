"""Models whose parts are scripted, reparametrized or quantized, and replicas of models, before and after the patch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from algm_patch import apply_algm, calibrate, remove_algm, tune, visualize
from tests.support.contract import SETTINGS, trace
from tests.support.models import build, photo
from tests.support.threads import run_in_threads

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def in_each_block(path: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that changes the module at a path of each block of a model."""

    def changed(model):
        for block in model.blocks:
            block.set_submodule(path, change(block.get_submodule(path)))
        return model

    return changed


def quantized(config):
    def change(model):
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, getattr(quantization, config)())
        return model

    return change


def in_8_bits(model):
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def linear(old):
        new = bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, has_fp16_weights=False, threshold=6.0)
        new.load_state_dict(old.state_dict())
        return new.to("cpu")

    for path in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        in_each_block(path, linear)(model)
    return model


def with_lora(**options):
    def change(model):
        peft = pytest.importorskip("peft")
        return peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False, **options)).eval()

    return change


def seeded(change):
    def changed(model):
        torch.manual_seed(0)
        return change(model)

    return changed


CHANGES: dict[str, Callable[[Any], Any]] = {
    "scripted norms": in_each_block("norm1", torch.jit.script),
    "scripted attention": in_each_block("attn", torch.jit.script),
    "scripted MLPs": in_each_block("mlp", torch.jit.script),
    "weight norm": in_each_block("attn.qkv", parametrizations.weight_norm),
    "weight norm by hooks": lambda model: [nn.utils.weight_norm(model.patch_embed.proj)] and model,
    "pruned": in_each_block("mlp.fc1", lambda layer: prune.l1_unstructured(layer, "weight", 0.3)),
    "quantized by torch": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True),
    "torchao, weights": quantized("Int8WeightOnlyConfig"),
    "torchao, activations too": quantized("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes": in_8_bits,
    "LoRA of the patch embedding": with_lora(target_modules=["patch_embed.proj", "qkv"]),
    "DoRA": with_lora(target_modules=["qkv"], use_dora=True),
    "DataParallel": nn.DataParallel,
    "bfloat16": lambda model: model.bfloat16(),
}


@torch.no_grad()
@pytest.mark.parametrize("what", CHANGES)
def test_either_order_is_the_same_and_goes_back(what):
    change, image = seeded(CHANGES[what]), photo().to(torch.bfloat16 if what == "bfloat16" else torch.float32)
    expected = change(build("ViT"))(image)
    outputs = []
    for first in (True, False):
        model: Any = build("ViT")
        model = change(apply_algm(model, **SETTINGS)) if first else apply_algm(change(model), **SETTINGS)
        outputs.append(model(image))
        handle = next(part.algm for part in model.modules() if hasattr(part, "algm"))
        assert handle.tokens_per_layer[0] < 31
        assert "full grid given back after layer 5" in str(handle)
        assert handle.gflops < handle.unpatched_gflops
        remove_algm(model)
        assert torch.equal(model(image), expected)
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], expected)


def test_a_parametrized_patch_embedding_is_undone_in_its_order():
    model = apply_algm(build("ViT"), **SETTINGS)
    before = trace(build("ViT"))
    parametrizations.weight_norm(model.patch_embed.proj)
    with pytest.raises(ValueError, match="class of ParametrizedConv2d was changed after apply_algm"):
        remove_algm(model)
    parametrize.remove_parametrizations(model.patch_embed.proj, "weight")
    assert trace(remove_algm(model)) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, photo())])
def test_a_model_of_torchscript_is_named_as_what_it_is(compiled):
    model, images = compiled(build("ViT")), [photo(), photo()]
    for patches in (lambda: apply_algm(model), lambda: tune(model, images)):
        with pytest.raises(ValueError, match=r"torch\.jit\.script or torch\.jit\.trace has compiled it"):
            patches()
    for is_patched in (lambda: remove_algm(model), lambda: calibrate(model, images), lambda: visualize(model, images)):
        with pytest.raises(ValueError, match=r"(Recursive|TopLevelTraced).*Module is not patched"):
            is_patched()


@pytest.mark.parametrize("path", ["", "blocks.1", "patch_embed.proj"])
def test_what_is_scripted_whole_is_refused(path):
    model: Any = build("ViT")
    if path:
        model.set_submodule(path, torch.jit.script(model.get_submodule(path)))
    else:
        model = torch.jit.script(model)
    with pytest.raises(
        ValueError, match=r"torch\.jit\.script or torch\.jit\.trace has compiled it, .* Script parts of blocks"
    ):
        apply_algm(model)
    assert not hasattr(model, "algm")


def test_a_scripted_head_is_not_what_a_model_is_refused_for():
    with pytest.raises(ValueError, match="no sequence of transformer blocks"):
        apply_algm(nn.Sequential(torch.jit.script(nn.Linear(3, 3))))


def replica_of(model):
    """Return a model that shares the weights of another, as nn.DataParallel makes one for each device."""
    replica = model._replicate_for_data_parallel()
    for name, child in model._modules.items():
        replica._modules[name] = None if child is None else replica_of(child)
    for name, weight in model._parameters.items():
        replica._parameters.pop(name, None)
        replica.__dict__[name] = weight
    return replica


@torch.no_grad()
def test_replicas_merge_in_threads_of_their_own():
    model = apply_algm(build("ViT"), **SETTINGS)
    images = [photo(seed=seed) for seed in (1, 2)]
    expected = [model(image) for image in images]
    replicas = [replica_of(model) for _ in images]

    def run(replica, image):
        return lambda: replica(image)

    found = run_in_threads([run(*each) for each in zip(replicas, images, strict=True)], times=3)
    for outputs, output in zip(found, expected, strict=True):
        assert all(torch.equal(each, output) for each in outputs)
    remove_algm(model)
    assert trace(model) == trace(build("ViT"))
