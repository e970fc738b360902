"""mmsegmentation's segmentors, whole and patched: by their configs, and a ViT in a head."""

import pytest
import torch
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS
from tests.support.models import photo
from tests.support.models_mmseg import SEGMENTORS, backbone, mmseg, segmentor


@torch.no_grad()
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_whole(name):
    model, image = segmentor(name), photo()
    expected, features = model(image), model.extract_feat(image)
    head = {part: type(module) for part, module in model.decode_head.named_modules()}
    assert apply_algm(model, **SETTINGS) is model
    assert model.backbone.algm is model.algm
    found = model(image)
    assert found.shape == expected.shape
    assert not torch.equal(found, expected)
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 30
    assert [x.shape for x in model.extract_feat(image)] == [x.shape for x in features]
    assert {part: type(module) for part, module in model.decode_head.named_modules()} == head
    assert "a method that ALGM does not know" not in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model(image), expected)
    remove_algm(model)
    assert torch.equal(model(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_predict(name):
    """Segmentors take whole images, or slide over larger ones."""
    model = apply_algm(segmentor(name), **SETTINGS)
    slides = model.test_cfg.mode == "slide"
    size = (130, 100) if slides else (90, 70)
    crops = []
    model.backbone.register_forward_hook(lambda *_: crops.append(model.algm.tokens_per_layer))
    (sample,) = model(torch.randn(1, 3, *size), mode="predict")
    assert sample.seg_logits.data.shape == (3, *size)
    assert len(crops) == (4 if slides else 1)
    assert all(tokens[-1] < 30 for tokens in crops)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors_learn(name):
    """Every head's loss reaches the patch embedding through merged tokens."""
    model = segmentor(name)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.randint(3, (2, 1, 96, 80))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    apply_algm(model, **SETTINGS)
    model.train()
    losses = {key: loss for key, loss in model(photo(), samples, mode="loss").items() if key.endswith("loss_ce")}
    auxiliary = {"setr_naive": 3, "setr_pup": 3, "setr_mla": 4}.get(name, 0)
    assert len(losses) == 1 + auxiliary
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0]
    for loss in losses.values():
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradient = model.backbone.patch_embed.projection.weight.grad
        assert gradient.isfinite().all()
        assert gradient.any()


@torch.no_grad()
def test_side_adapter_network():
    """This ViT is in a head: queries stand before the patches, and CLIP's features are added between the blocks."""
    models = mmseg()
    from mmengine import ConfigDict

    side = models.decode_heads.san_head.SideAdapterNetwork(
        clip_channels=64,
        embed_dims=64,
        num_queries=5,
        fusion_index=[0, 2],
        cfg_encoder=ConfigDict(num_encode_layer=4, num_heads=4, mlp_ratio=2),
        cfg_decoder=ConfigDict(num_heads=2, num_layers=1, embed_channels=32, mlp_channels=32, num_mlp=2, rescale=True),
    ).eval()
    both = nn.ModuleDict({"backbone": backbone("ViT"), "side": side})
    with pytest.raises(ValueError, match=r"2 ViTs: 'backbone' \(Vis.*, 'side' \(SideAdapterNetwork, 4"):
        apply_algm(both)
    clip = [(torch.randn(2, 64, 6, 5), torch.randn(2, 64)) for _ in side.fusion_index]
    (expected,), _ = side(photo(), clip, [])
    apply_algm(side, clap_layer=1, gbm_layers=[], tau=-1.0)
    (found,), _ = side(photo(), clip, [])
    assert found.shape == expected.shape == (2, 5, 6, 5)
    assert "grid 6x5 + 5 prefix" in repr(side.algm)
    assert side.algm.tokens_per_layer == [35 - 6 * 3] * 4
    assert not torch.equal(found, expected)
    side.algm.tau = 2.0
    assert torch.equal(side(photo(), clip, [])[0][0], expected)
