"""Segmenter: the authors' own tensors, its decoders on the full grid and on merged tokens."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases_segmenter import KINDS, build
from conftest import golden_files, read_golden
from models import photo
from test_contract import trace
from test_training import assert_same, gradients
from torch.utils.checkpoint import checkpoint

from algm_patch import apply_algm, calibrate, remove_algm
from algm_patch.adapters.attention import attend
from algm_patch.functional import TokenMap
from algm_patch.patching.find_vit import find_vit

SETTINGS = {"clap_layer": 1, "gbm_layers": [3], "tau": 0.5}
AFTER = {**SETTINGS, "unmerge_at": "after_head"}


@pytest.fixture(params=KINDS)
def model(request):
    decoder, options = KINDS[request.param]
    return build(decoder, **options)


# -- the authors' implementation


@pytest.fixture(params=golden_files("segmenter_*"), ids=lambda path: path.stem)
def golden(request):
    tensors, recorded = read_golden(request.param)
    sizes = {name: int(recorded[name]) for name in ("image", "patch", "depth", "dim", "n_cls")}
    grid = (sizes["image"] // sizes["patch"],) * 2
    model = build(recorded["decoder"], grid, sizes["depth"], sizes["dim"], patch_size=sizes["patch"])
    model.load_state_dict({key[2:]: value for key, value in tensors.items() if key.startswith("w.")})
    (layer,) = eval(recorded["layers"])
    settings = {"clap_layer": layer, "gbm_layers": [], "tau": float(recorded["tau"]), "proportional_attention": False}
    return model, tensors, {**settings, "batch": "min"}


@torch.no_grad()
def test_golden_unpatched(golden):
    model, tensors, _ = golden
    torch.testing.assert_close(model(tensors["image"]), tensors["baseline_masks"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_golden_encoder(golden):
    model, tensors, settings = golden
    apply_algm(model, settings=settings)
    found = model.encoder(tensors["image"], return_features=True)
    index = tensors["token_map"].long()[..., None].expand(-1, -1, found.shape[-1])
    torch.testing.assert_close(found, tensors["encoder_out"].gather(1, index), atol=1e-4, rtol=1e-4)
    assert model.algm.tokens_per_layer[-1] == tensors["encoder_out"].shape[1]


@torch.no_grad()
def test_golden_masks(golden):
    model, tensors, settings = golden
    apply_algm(model, **settings, unmerge_at="after_head")
    torch.testing.assert_close(model(tensors["image"]), tensors["masks"], atol=1e-4, rtol=1e-4)


# -- attention


@torch.no_grad()
def test_fused_attention_is_the_blocks_own():
    attention, x = build("mask").encoder.blocks[2].attn, torch.randn(2, 31, 64)
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x)[0], atol=1e-5, rtol=1e-5)
    attention.scale = 1.0
    torch.testing.assert_close(attend(attention, x, None, 4), attention(x)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("drop", ["attn_drop", "proj_drop"])
def test_fused_attention_drops_what_the_block_drops(drop):
    attention, x = build("mask").encoder.blocks[2].attn, torch.randn(2, 31, 64)
    getattr(attention, drop).p = 1.0
    kept = attend(attention, x, None, 4)
    getattr(attention, drop).train()  # alone, as for Monte Carlo dropout
    dropped = attend(attention, x, None, 4)
    assert not torch.allclose(dropped, kept)
    torch.testing.assert_close(dropped, attention(x)[0])


@torch.no_grad()
def test_proportional_attention_is_attention_to_the_copies():
    model, image = build("mask"), photo(batch=1)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)
    outputs = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    model(image)
    assert model.algm.tokens_per_layer[-1] < 31
    remove_algm(model)
    torch.testing.assert_close(model.encoder.blocks[2](outputs[1]), outputs[2], atol=1e-5, rtol=1e-5)


def test_attention_maps_of_merged_layers_are_refused():
    model, image = build("mask"), photo()
    expected = model.encoder.get_attention_map(image, 1)
    apply_algm(model, clap_layer=3, gbm_layers=[], tau=0.5)
    torch.testing.assert_close(model.encoder.get_attention_map(image, 1), expected)
    for layer in (2, 4):
        with pytest.raises(ValueError, match=r"return_attention=True: .* Call remove_algm"):
            model.get_attention_map_enc(image, layer)
    assert model.get_attention_map_dec(image, 1).shape == (2, 4, 37, 37)
    assert model(image).shape == (2, 7, 96, 80)


@torch.no_grad()
def test_hooks_on_attention_are_not_skipped_in_silence():
    model, image = apply_algm(build("mask"), **SETTINGS, batch="min"), photo()
    seen = []
    hook = model.encoder.blocks[3].attn.qkv.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    model(image)
    assert seen == [(2, model.algm.tokens_per_layer[2], 192)]
    hook.remove()
    model.encoder.blocks[3].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"this Attention has hooks, .* on its qkv or proj, or call remove_algm"):
        model(image)


@torch.no_grad()
def test_attention_of_another_kind_runs_as_it_is():
    model, lengths = build("mask"), []

    class Listening(type(model.encoder.blocks[0].attn)):
        def forward(self, x, mask=None):
            lengths.append(x.shape[1])
            return super().forward(x, mask)

    for block in model.encoder.blocks:
        block.attn.__class__ = Listening
    with pytest.raises(ValueError, match=r"proportional_attention=True .* block 1 of VisionTransformer \(Block\)"):
        apply_algm(model)
    apply_algm(model, **SETTINGS, proportional_attention=False, batch="min")
    model(photo())
    assert lengths == [31, *model.algm.tokens_per_layer[:-1]]


# -- before the head


def test_the_decoder_has_the_same_blocks_and_is_left_alone(model):
    trunk, vit = find_vit(model)
    assert trunk is model.encoder
    assert vit.blocks == list(model.encoder.blocks)
    apply_algm(model, **SETTINGS)
    assert all("_algm" not in part.__dict__ for part in model.decoder.modules())


@torch.no_grad()
def test_by_default_the_decoder_sees_the_full_grid(model, monkeypatch):
    image, unmerged = photo(), []
    apply_algm(model, **SETTINGS)
    monkeypatch.setattr(TokenMap, "unmerge", lambda self, x, real=TokenMap.unmerge: unmerged.append(1) or real(self, x))
    masks = model(image)
    assert len(unmerged) == 1
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 31
    features = model.encoder(image, return_features=True)
    prefix = features.shape[1] - 30
    remove_algm(model)
    expected = model.decoder(features[:, prefix:], (96, 80))
    torch.testing.assert_close(masks, torch.nn.functional.interpolate(expected, (96, 80), mode="bilinear"))


@torch.no_grad()
@pytest.mark.parametrize("settings", [SETTINGS, AFTER])
def test_images_of_any_size_are_padded_as_ever(model, settings):
    plain = [model(photo(grid=grid)[..., 3:, 5:]).shape for grid in [(6, 5), (4, 7), (2, 2)]]
    apply_algm(model, settings=settings)
    assert [model(photo(grid=grid)[..., 3:, 5:]).shape for grid in [(6, 5), (4, 7), (2, 2)]] == plain


# -- after the head


@torch.no_grad()
def test_after_the_head_the_decoder_runs_on_merged_tokens(model):
    image, lengths = photo(), []
    apply_algm(model, **SETTINGS, batch="min")
    features = model.encoder(image, return_features=True)
    before = model(image)
    token_map, prefix = model.algm.token_map, features.shape[1] - 30
    model = remove_algm(model)
    merged = token_map.take(features)[:, prefix:]

    def full_grid(_, inputs, output):
        return token_map.without_prefix(prefix).unmerge(output)

    name = "head" if "Linear" in type(model.decoder).__name__ else "mask_norm"
    with model.decoder.get_submodule(name).register_forward_hook(full_grid):
        expected = torch.nn.functional.interpolate(model.decoder(merged, (96, 80)), (96, 80), mode="bilinear")

    apply_algm(model, **AFTER, batch="min")
    model.decoder.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    found = model(image)
    torch.testing.assert_close(found, expected)
    assert lengths == [merged.shape[1]]
    assert merged.shape[1] + prefix == model.algm.tokens_per_layer[-1] < 31
    assert torch.allclose(found, before, atol=1e-5) == (name == "head")  # a linear decoder minds no neighbours
    assert "proportional attention on, unmerged after the head" in repr(model.algm)
    assert "full grid given back" not in repr(model.algm)


@torch.no_grad()
def test_after_the_head_merging_nothing_is_the_original(model):
    expected = model(photo())
    apply_algm(model, gbm_layers=[], tau=2.0, unmerge_at="after_head")
    assert torch.equal(model(photo()), expected)
    model.algm.tau, model.algm.gbm_layers, model.algm.gbm_tau = 1.0, [3], 1.0
    assert torch.equal(model(photo()), expected)


@torch.no_grad()
@pytest.mark.parametrize("whole", [True, False])
def test_after_the_head_nothing_is_left_behind(model, whole):
    before, expected = trace(model), model(photo())
    apply_algm(model, **SETTINGS)
    plain = model(photo())
    apply_algm(model, **AFTER)
    assert [name for name, _ in model.named_parameters()] == list(model.state_dict())
    apply_algm(model if whole else model.encoder, **SETTINGS)
    assert torch.equal(model(photo()), plain)
    apply_algm(model, **AFTER)
    remove_algm(model if whole else model.encoder)
    assert trace(model) == before
    assert torch.equal(model(photo()), expected)


@torch.no_grad()
@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_after_the_head_a_copy_goes_its_own_way(how):
    model, image = apply_algm(build("mask"), **AFTER), photo()
    before, masks = trace(remove_algm(how(model))), model(image)
    other = how(model)
    assert torch.equal(other(image), masks)
    other.algm.tau = 0.9
    assert not torch.equal(other(image), masks)
    apply_algm(other, **SETTINGS)
    assert not torch.equal(other(image), masks)
    assert trace(remove_algm(other)) == before
    assert torch.equal(model(image), masks)


@torch.no_grad()
def test_after_the_head_each_decoding_finds_its_own_encoding():
    """Two images encoded one after the other, then decoded; every grid merges to the same number of tokens."""
    model, images = build("mask"), [photo(seed=1), photo(seed=2)]
    apply_algm(model, clap_layer=None, gbm_layers=[2], gbm_tau=-1.0, unmerge_at="after_head")
    expected = [model.decoder(model.encoder(image, return_features=True)[:, 1:], (96, 80)) for image in images]
    first, second = [model.encoder(image, return_features=True)[:, 1:] for image in images]
    assert first.shape == second.shape
    for features, masks in zip((second, first), reversed(expected), strict=True):
        assert torch.equal(model.decoder(features, (96, 80)), masks)


@torch.no_grad()
def test_after_the_head_in_two_threads():
    model = apply_algm(build("mask"), clap_layer=None, gbm_layers=[2], gbm_tau=-1.0, unmerge_at="after_head")
    images = [photo(seed=seed) for seed in range(2)]
    expected = [model(image) for image in images]

    def same(number):
        with torch.no_grad():
            return all(torch.equal(model(images[number]), expected[number]) for _ in range(20))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(same, range(2))) == [True, True]


@torch.no_grad()
def test_after_the_head_compiled():
    model, image = build("mask", depth=2), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=0.5, unmerge_at="after_head")
    expected = model(image)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(image), expected)


@torch.no_grad()
def test_after_the_head_a_hook_on_the_last_block_sees_merged_tokens():
    model, image, lengths = apply_algm(build("mask"), **AFTER), photo(), []
    masks = model(image)
    model.encoder.blocks[-1].register_forward_hook(lambda _, inputs, output: lengths.append(output.shape[1]))
    assert torch.equal(model(image), masks)
    assert lengths == [model.algm.tokens_per_layer[-1]]


@torch.no_grad()
def test_after_the_head_calibrated():
    model = apply_algm(build("mask"), clap_layer=1, gbm_layers=[3], unmerge_at="after_head")
    tau = calibrate(model, photo(batch=4))
    model(photo())
    assert f"calibrated: {tau:.4f}, unmerged" not in repr(model.algm)
    assert f"calibrated: {tau:.4f}" in repr(model.algm)
    assert "unmerged after the head" in repr(model.algm)


@pytest.mark.parametrize("model", ["whole", "timm"])
def test_after_the_head_without_a_known_decoder(model):
    segmenter = build("mask")
    if model == "timm":
        from models import build as vit

        model = vit("ViT")
    else:
        model = segmenter.encoder
    before = trace(model)
    with pytest.raises(ValueError, match=r"unmerge_at='after_head': in VisionTransformer .* model\.algm\.unmerge"):
        apply_algm(model, **AFTER)
    assert trace(model) == before


def test_after_the_head_what_does_not_go_together():
    model = build("mask")
    apply_algm(model, **AFTER)
    with pytest.raises(ValueError, match=r"Call apply_algm\(model, unmerge_at='before_head'\) again"):
        model.algm.unmerge_at = "before_head"


@torch.no_grad()
def test_after_the_head_tokens_that_cannot_be_traced():
    model, image = apply_algm(build("mask"), **AFTER), photo()
    features = model.encoder(image, return_features=True)[:, 1:]
    with pytest.raises(RuntimeError, match=r"cannot trace to a forward pass of VisionTransformer\. Hand it what"):
        model.decoder(2 * features, (96, 80))
    x = model.encoder.patch_embed(image)
    x = torch.cat([model.encoder.cls_token.expand(2, -1, -1), x], 1)
    with pytest.raises(RuntimeError, match=r"run by a method that ALGM does not know.*before_head"):
        model.encoder.blocks[0](x)


# -- training


@pytest.mark.parametrize("settings", [SETTINGS, AFTER])
def test_training_and_recomputation(model, settings):
    """Two passes wait for one backward pass; the decoder, the encoder or all is run again in it."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.1
    apply_algm(model.train(), settings=settings)
    images = [photo(seed=1), photo(seed=2)]

    def encode(image):
        return model.encoder(image, return_features=True)

    def decode(x):
        return model.decoder(x[:, 1 + model.encoder.distilled :], (96, 80))

    def again(function, reentrant=False):
        return lambda x: checkpoint(function, x, use_reentrant=reentrant)

    def found(encode, decode):
        torch.manual_seed(0)
        masks = [decode(encode(image)) for image in images]
        with torch.no_grad():
            model(photo(seed=3))
        return gradients(model, masks[0].square().mean() + masks[1].pow(3).mean())

    expected = found(encode, decode)
    assert model.algm.tokens_per_layer[-1] < 31
    assert all(name in expected for name, _ in model.encoder.blocks.named_parameters("encoder.blocks"))
    assert_same(found(again(encode), decode), expected, atol=0, rtol=0)
    assert_same(found(encode, again(decode)), expected, atol=0, rtol=0)
    assert_same(found(encode, again(decode, reentrant=True)), expected, atol=0, rtol=0)
    assert_same(found(again(encode), again(decode)), expected, atol=0, rtol=0)


def test_stochastic_depth_is_the_blocks_own():
    model, image = build("mask", drop_path_rate=0.5).train(), photo(batch=4)
    torch.manual_seed(1)
    expected = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[2], tau=1.0, gbm_tau=1.0, unmerge_at="after_head")
    torch.manual_seed(1)
    assert torch.equal(model(image), expected)
    assert set(model.algm.tokens_per_layer) == {31}
