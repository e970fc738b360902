"""Models inside what others wrap around them, patched before and after."""

import copy
import warnings
from itertools import product

import models_huggingface
import pytest
import torch
from models import ALL, ENCODERS, GRID, build, photo, read_every_block
from timm.utils import ModelEmaV3
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from algm_patch import Settings, apply_algm, remove_algm, tune
from algm_patch.patching.find_vit import find_vit

SETTINGS = {"gbm_layers": [2], "tau": 0.5}


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def with_lora(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["qkv"], lora_alpha=8, r=8))


def sharded(model, **options):
    mesh = init_device_mesh("cpu", (1,))
    for part in (*find_vit(model)[1].blocks, model):
        fully_shard(part, mesh=mesh, **options if part is not model else {})
    return model


WRAPPERS = {
    "DDP": DistributedDataParallel,
    "FSDP2": sharded,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DDP, torch.compile": lambda model: torch.compile(DistributedDataParallel(model), backend="eager"),
    "PEFT LoRA": with_lora,
}
ORDERS = [*product(WRAPPERS, ["before", "after"])]
ORDERS.remove(("DDP, torch.compile", "after"))  # slow, and one of DDP and one of torch.compile are there


def loss_of(x):
    return (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum()


def trained(model, image):
    """The output and, by name, the gradient of all that trains, gathered where it is sharded."""
    model.zero_grad()
    output = model(image)
    loss_of(output).backward()
    gathered = {
        name: parameter.grad.full_tensor() if hasattr(parameter, "full_tensor") else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return output.detach(), {
        ".".join(part for part in name.split(".") if part not in ADDED): gathered[name] for name in gathered
    }


ADDED = ("module", "_orig_mod", "base_model", "model")


def in_lora(gradients, model):
    """What the gradients of the plain weights mean for LoRA's two matrices, of which B begins as zero."""
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
    """Recomputed, every input is cast anew, and its storage with it: that is refused, not guessed."""
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
    tune(build("ViT", depth=3), photo(batch=8), keep=0.5, budget="1s").save(tmp_path / "settings.json")
    with warnings.catch_warnings(action="error"):
        model = apply_algm(sharded(build("ViT", depth=3)), **Settings.load(tmp_path / "settings.json"))
    assert model(photo()).shape == (2, 3)


AVERAGES = {
    "timm": (lambda model: ModelEmaV3(model, decay=0.75), lambda average, model: average.update(model, step=10)),
    "torch": (
        lambda model: AveragedModel(model, avg_fn=lambda average, new, count: 0.75 * average + 0.25 * new),
        lambda average, model: average.update_parameters(model),
    ),
}


def one_update(average, update, model):
    """The model moves, and its average after it."""
    start = copy.deepcopy(average.module.state_dict())
    if isinstance(average, AveragedModel):
        update(average, model)  # the first one copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    update(average, model)
    moved = {name: 0.75 * start[name] + 0.25 * value for name, value in model.state_dict().items()}
    torch.testing.assert_close(dict(average.module.state_dict()), moved)
    assert not torch.equal(moved["cls_token"], start["cls_token"])


@torch.no_grad()
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_before_the_patch_is_the_plain_model(kind):
    (make, update), model, image = AVERAGES[kind], build("ViT", depth=3), photo()
    average = make(model)
    apply_algm(model, **SETTINGS)
    one_update(average, update, model)
    assert not hasattr(average.module, "algm")
    model.load_state_dict(average.module.state_dict())
    merged = model(image)
    assert not torch.equal(merged, average.module(image))
    assert torch.equal(remove_algm(model)(image), average.module(image))
    assert torch.equal(apply_algm(average.module, **SETTINGS)(image), merged)


@torch.no_grad()
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_made_after_the_patch_has_a_handle_of_its_own(kind):
    (make, update), model, image = AVERAGES[kind], apply_algm(build("ViT", depth=3), **SETTINGS), photo()
    model(image)
    handle, past = model.algm, model.algm._past()
    average = make(model)
    one_update(average, update, model)
    assert model.algm is handle is not average.module.algm
    model.algm.tau = 2.0
    merged = average(photo(seed=1))
    assert average.module.algm.tau == 0.5
    assert model.algm._past() is past
    plain = build("ViT", depth=3)
    plain.load_state_dict(average.module.state_dict())
    assert torch.equal(apply_algm(plain, **SETTINGS)(photo(seed=1)), merged)
    model.load_state_dict(average.module.state_dict())
    model.algm.tau = 0.5
    assert torch.equal(model(photo(seed=1)), merged)
    remove_algm(average)
    assert torch.equal(average(image), remove_algm(plain)(image))
    assert model.algm is handle


EVEN = (6, 4)  # Qwen3's own merger takes windows
SAME_BLOCKS = {"hybrid, ResNet", "hybrid, convolutional stem"}  # as "ViT", behind slow stems
NOTHING = {"tau": 1.0, "gbm_tau": 1.0}
EVERYTHING = {"tau": -1.0, "gbm_tau": -1.0}
HUGGING_FACE = [
    "ViT",
    "DeiT",
    "DINOv2, registers",
    "DINOv3",
    "Sapiens 2",
    "BEiT, bias per layer",
    "BEiT, both, eager",
    "Data2Vec, shared bias",
    "CLIP",
    "SigLIP 2",
    "ViT-MAE",
    "Pixio",
]


def timm_loss(family):
    image = photo(family, grid=EVEN if family in ENCODERS else GRID)
    return lambda model: model(image).square().sum()


def hugging_face_loss(family):
    tokens = models_huggingface.tokens(family)
    return lambda model: tokens(model, models_huggingface.photo()).square().sum()


CASES = {
    **{
        family: (lambda family=family: build(family, EVEN if family in ENCODERS else GRID), timm_loss(family))
        for family in sorted(ALL.keys() - SAME_BLOCKS)
    },
    **{
        f"transformers, {family}": (
            lambda family=family: models_huggingface.build(family),
            hugging_face_loss(family),
        )
        for family in HUGGING_FACE
    },
}


def with_gradient(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("case", CASES)
def test_no_parameter_is_unused_because_of_merging(case):
    """DDP raises in the next forward pass if the last left a parameter without its gradient."""
    make, loss = CASES[case]
    model = make().train()
    loss(model).backward()
    used = with_gradient(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in used)
    whole, lengths = DistributedDataParallel(apply_algm(model, **SETTINGS)), []
    for every_block in (False, True):
        if every_block:
            read_every_block(model)
        for thresholds in (SETTINGS, NOTHING, EVERYTHING):
            model.algm.tau = thresholds["tau"]
            model.algm.gbm_tau = thresholds.get("gbm_tau", "adaptive")
            model.zero_grad()
            loss(whole).backward()
            assert with_gradient(model) == used, (every_block, thresholds)
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)
            lengths.append(model.algm.tokens_per_layer[-1])
    assert lengths[:3] == lengths[3:]
    assert lengths[2] <= lengths[0] < lengths[1]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "case", ["EVA-02", "NaFlex", "BEiT, shared bias", "Qwen3", "transformers, DINOv3", "transformers, CLIP"]
)
@pytest.mark.parametrize("patched", ["before", "after"])
def test_shards_of_other_families(case, patched):
    make, loss = CASES[case]
    plain, model = apply_algm(make().train(), **SETTINGS), make().train()
    model = sharded(apply_algm(model, **SETTINGS)) if patched == "before" else apply_algm(sharded(model), **SETTINGS)
    for each in (plain, model):
        torch.manual_seed(0)
        loss(each).backward()
    assert str(model.algm).partition("\n")[2] == str(plain.algm).partition("\n")[2]
    assert model.algm.token_map.sizes.amax() > 1
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        found = None if parameter.grad is None else parameter.grad.full_tensor()
        torch.testing.assert_close(found, expected.grad, msg=lambda text, name=name: f"{name}: {text}")
