"""Models that accelerate prepares, offloads or spreads over devices, before and after the patch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support import models_huggingface
from tests.support.contract import SETTINGS, trace
from tests.support.models import build, photo

accelerate = pytest.importorskip("accelerate")
hooks = pytest.importorskip("accelerate.hooks")


@pytest.fixture(autouse=True)
def _fresh():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def prepared(model, **options):
    return accelerate.Accelerator(cpu=True, **options).prepare(model)


CPU = torch.device("cpu")
WAYS: dict[str, Callable[[Any], Any]] = {
    "cpu_offload": lambda model: accelerate.cpu_offload(model, CPU),
    "cpu_offload_with_hook": lambda model: accelerate.cpu_offload_with_hook(model, CPU)[0],
    "dispatch_model": lambda model: accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True),
    "prepare": prepared,
    "prepare, bf16": lambda model: prepared(model, mixed_precision="bf16"),
}
MODELS: dict[str, Callable[[], Any]] = {
    "timm": lambda: build("ViT"),
    "transformers": lambda: models_huggingface.build("ViT"),
}


def answer(model, image):
    with torch.no_grad():
        output = model(image)
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.mark.parametrize("order", ["patch first", "patch last"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS)
def test_each_is_the_plainly_patched_model_and_goes_back(kind, way, order):
    image, make, wrap = photo(batch=1), MODELS[kind], WAYS[way]
    exact = way != "prepare, bf16"
    plain, patched = (wrap(model) if not exact else model for model in (make(), apply_algm(make(), **SETTINGS)))
    expected, merged = answer(plain, image), answer(patched, image)
    model = wrap(apply_algm(make(), **SETTINGS)) if order == "patch first" else apply_algm(wrap(make()), **SETTINGS)
    assert torch.equal(answer(model, image), merged)
    assert model.algm.tokens_per_layer == patched.algm.tokens_per_layer
    if exact or order == "patch first":
        assert "full grid given back after layer 5" in str(model.algm)
    remove_algm(model)
    assert torch.equal(answer(model, image), expected)
    assert attributes(model) == attributes(wrap(make()))
    hooks.remove_hook_from_submodules(model)
    assert torch.equal(answer(model, image), expected)


def attributes(model):
    """Return each module's class and the names of its attributes."""
    return [(path, type(module), set(vars(module))) for path, module in model.named_modules()]


@pytest.mark.parametrize("order", ["patch first", "patch last"])
def test_hooks_are_taken_away_under_the_patch(order):
    model, image = build("ViT"), photo(batch=1)
    merged = answer(apply_algm(build("ViT"), **SETTINGS), image)
    wrap = WAYS["dispatch_model"]
    model = wrap(apply_algm(model, **SETTINGS)) if order == "patch first" else apply_algm(wrap(model), **SETTINGS)
    hooks.remove_hook_from_submodules(model)
    assert torch.equal(answer(model, image), merged)
    remove_algm(model)
    assert torch.equal(answer(model, image), answer(build("ViT"), image))


@pytest.mark.parametrize("order", ["patch first", "patch last"])
def test_a_hook_of_the_users_own_sees_the_full_grid(order):
    class Seen(hooks.ModelHook):  # type: ignore[name-defined]
        def post_forward(self, module, output):
            lengths.append(output.shape[1])
            return output

    lengths: list[int] = []
    model = build("ViT")
    if order == "patch first":
        apply_algm(model, **SETTINGS)
    hooks.add_hook_to_module(model.blocks[2], Seen())
    if order == "patch last":
        with pytest.raises(ValueError, match=r"blocks\[2\] cannot be patched: .* forward set on the instance"):
            apply_algm(model, **SETTINGS)
        return
    answer(model, photo(batch=1))
    assert lengths == [31]


@pytest.mark.parametrize("compare", ["token", "key"])
def test_what_attention_computes_is_compared_where_weights_are_brought(compare):
    image = photo(batch=1)
    plain = apply_algm(build("ViT"), **SETTINGS, compare=compare)
    model = apply_algm(WAYS["cpu_offload"](build("ViT")), **SETTINGS, compare=compare)
    assert torch.equal(answer(model, image), answer(plain, image))


def test_blocks_without_weights_are_proved():
    """The weights are on the meta device until a block runs, and the proof brings none."""

    class Norm(nn.LayerNorm):
        pass

    image = photo(batch=1)
    model, plain = (build("ViT", norm_layer=Norm) for _ in range(2))
    for each in (model, plain):
        for block in each.blocks:
            block.__class__ = copied_block()
    offloaded = WAYS["cpu_offload"](model)
    before = trace(offloaded)
    apply_algm(offloaded, **SETTINGS)
    assert torch.equal(answer(offloaded, image), answer(apply_algm(plain, **SETTINGS), image))
    remove_algm(offloaded)
    assert trace(offloaded) == before


def copied_block():
    """Return a class of blocks that is registered nowhere."""
    block = type(build("ViT", depth=1).blocks[0])

    class Copied(block):  # type: ignore[misc, valid-type]
        def forward(self, x, attn_mask=None, is_causal=False):
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask)))
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    return Copied


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_extracted_without_mixed_precision_it_stays_patched(precision):
    image = photo(batch=1)
    model = prepared(apply_algm(models_huggingface.build("ViT"), **SETTINGS), mixed_precision=precision)
    answer(model, image)
    model = accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False)
    plain = apply_algm(models_huggingface.build("ViT"), **SETTINGS)
    assert torch.equal(answer(model, image), answer(plain, image))
    assert "full grid given back after layer 5" in str(model.algm)
    remove_algm(model)
    assert torch.equal(answer(model, image), answer(models_huggingface.build("ViT"), image))
    assert "forward" not in vars(model)
