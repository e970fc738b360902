"""Code that reads and writes between timm's blocks: subclasses, sequences and hooks."""

import torch
from timm.models.vision_transformer import VisionTransformer

from algm_patch import apply_algm, remove_algm
from tests.support.contract import SETTINGS
from tests.support.models import build, photo, read_every_block


class Neck(VisionTransformer):
    """A segmenter that reads blocks and writes between them, in a method that no library knows."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        levels = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % 2:
                x = x + torch.linspace(0, 1, x.shape[1])[:, None]  # a position-dependent prompt: copies now differ
            levels.append(x[:, 1:].mT.unflatten(2, (6, 5)))
        return self.norm(x), levels


@torch.no_grad()
def test_a_subclass_that_reads_between_the_blocks_sees_full_grids():
    model = Neck(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval()
    expected, levels = model.forward_features(photo())
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    found, patched_levels = model.forward_features(photo())
    assert [x.shape for x in patched_levels] == [x.shape for x in levels]
    assert found.shape == expected.shape
    assert "every block gave back the full grid" in repr(model.algm)
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model.forward_features(photo())[0], expected)


@torch.no_grad()
def test_what_was_written_between_the_blocks_is_averaged_over_each_group():
    model, image = build("ViT"), photo()
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5, proportional_attention=False, restore=True)
    x = model.blocks[0](model._pos_embed(model.patch_embed(image)))
    prompt = torch.randn_like(x)
    found = model.blocks[1](x + prompt)
    token_map = model.algm.token_map
    remove_algm(model)
    means = token_map.merge(x + prompt)
    torch.testing.assert_close(found, token_map.unmerge(model.blocks[1](means)) + x + prompt - token_map.unmerge(means))
    assert token_map.sizes.max() == 4


class Reading(torch.nn.Sequential):
    """Runs the blocks and keeps what they leave."""

    def forward(self, x):
        self.levels = []
        for block in self:
            x = block(x)
            self.levels.append(x)
        return x


@torch.no_grad()
def test_a_sequence_that_reads_between_its_blocks_sees_full_grids():
    model = build("ViT")
    model.blocks = Reading(*model.blocks)
    apply_algm(model, **SETTINGS)
    model.forward_features(photo())
    assert {level.shape for level in model.blocks.levels} == {(2, 31, 64)}
    assert model.algm.tokens_per_layer[-1] < 31


@torch.no_grad()
def test_a_hook_that_changes_a_blocks_output_is_heard():
    model, image = build("ViT"), photo()
    apply_algm(model, **SETTINGS)
    plain = model.forward_features(image)
    model.blocks[1].register_forward_hook(lambda *_: None)
    assert torch.equal(model.forward_features(image), plain)
    model.blocks[1].register_forward_hook(lambda _, inputs, output: 2 * output)
    doubled = model.forward_features(image)
    assert not torch.allclose(doubled, plain)
    read_every_block(model)
    torch.testing.assert_close(model.forward_features(image), doubled)


def test_backward_hooks_on_a_block_see_full_grids():
    model = apply_algm(build("ViT"), **SETTINGS)
    shapes = []
    for block in model.blocks:
        block.register_full_backward_hook(lambda _, inputs, outputs: shapes.append((inputs[0].shape, outputs[0].shape)))
    model.forward_features(photo().requires_grad_()).sum().backward()
    assert set(shapes) == {(torch.Size((2, 31, 64)), torch.Size((2, 31, 64)))}
    assert len(shapes) == 5


class Prompted(VisionTransformer):
    """A ViT with prompts: learned tokens after the class token, in every block."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        prompts = torch.linspace(-1, 1, 3 * x.shape[2]).view(1, 3, -1).expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], prompts, x[:, 1:]], 1)
        return self.norm(self.blocks(x))


@torch.no_grad()
def test_prompts_before_the_patches_are_prefix():
    model, image = Prompted(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval(), photo()
    expected = model.forward_features(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    assert model.forward_features(image).shape == expected.shape
    assert "grid 6x5 + 4 prefix" in repr(model.algm)
    assert torch.equal(model.algm.token_map.labels[:, :4], torch.arange(4).expand(2, 4))
    assert (model.algm.token_map.sizes[:, :4] == 1).all()
    assert model.algm.tokens_per_layer[-1] < model.algm.tokens_per_layer[0] < 34


class LateQueries(VisionTransformer):
    """A ViT whose queries join before the prefix in the middle of the blocks, as EoMT's do."""

    def forward_features(self, x):
        x = self._pos_embed(self.patch_embed(x))
        queries = torch.linspace(-1, 1, 3 * x.shape[2]).view(1, 3, -1).expand(len(x), -1, -1)
        for i, block in enumerate(self.blocks):
            if i == 2:
                x = torch.cat([queries, x], 1)
            x = block(x)
        return self.norm(x)


@torch.no_grad()
def test_queries_that_join_late_are_prefix():
    model, image = LateQueries(img_size=(96, 80), embed_dim=64, depth=4, num_heads=4, num_classes=0).eval(), photo()
    expected = model.forward_features(image)
    apply_algm(model, clap_layer=1, gbm_layers=[4], tau=0.5)
    assert model.forward_features(image).shape == expected.shape == (2, 34, 64)
    first, second, third, fourth = model.algm.tokens_per_layer
    assert first == second < 31
    assert third == second + 3 > fourth
    assert torch.equal(model.algm.token_map.labels[:, :4], torch.arange(4).expand(2, 4))
    assert (model.algm.token_map.sizes[:, :4] == 1).all()
    model.algm.tau, model.algm.gbm_layers = 2.0, []
    assert torch.equal(model.forward_features(image), expected)
    assert model.algm.tokens_per_layer == [31, 31, 34, 34]
