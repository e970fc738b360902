"""The patch projection of blocks that stand in models of other people: found by what it is."""

import re
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from algm_patch import apply_algm, remove_algm
from tests.support.models import build, photo

WIDTH = 64


class Strange(nn.Module):
    """Runs known blocks on what a stem of any name and form leaves."""

    def __init__(self, stem: nn.Module, name: str = "conv1", **others: nn.Module):
        super().__init__()
        self.add_module(name, stem)
        self.stem = [stem]  # in a list, so that it has the one name
        self.layers = nn.Sequential(*(Block(WIDTH, 4) for _ in range(5)))
        self.norm = nn.LayerNorm(WIDTH)
        for name, other in others.items():
            self.add_module(name, other)

    def forward(self, image):
        return self.norm(self.layers(self.stem[0](image).flatten(2).mT))


def patches(**options):
    return nn.Conv2d(3, WIDTH, 16, 16, **options)


def stem(last):
    return nn.Sequential(nn.Conv2d(3, 32, 7, 4, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1), last)


STEMS = {
    "patches": patches,
    "patches with padding": lambda: patches(padding=2),
    "patches in a module": lambda: nn.Sequential(patches(), nn.GroupNorm(1, WIDTH)),
    "overlaps": lambda: nn.Conv2d(3, WIDTH, 16, 12, 2),
    "stem that ends in a stride": lambda: stem(nn.Conv2d(48, WIDTH, 3, 2, 1)),
    "stem that ends without": lambda: stem(nn.Conv2d(48, WIDTH, 1)),
    "stem with two layers of the width": lambda: stem(
        nn.Sequential(nn.Conv2d(48, WIDTH, 2, 2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
    ),
}
OTHERS = {
    "necks": lambda: nn.Sequential(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)),
    "positions": lambda: nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH),
    "pooling": lambda: nn.Conv2d(WIDTH // 2, WIDTH, 3, 2, 1, groups=WIDTH // 2),
    "other_width": lambda: nn.Conv2d(3, 2 * WIDTH, 8, 8),
    "side_branch": lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, WIDTH, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ["conv1", "to_patch_embedding", "tokenizer"])
@pytest.mark.parametrize("kind", STEMS)
def test_found_by_what_it_is(kind, name):
    torch.manual_seed(0)
    model: Any = Strange(STEMS[kind](), name).eval()
    image = photo()
    grid = tuple(model.stem[0](image).shape[2:])
    expected = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    model(image)
    assert model.algm.last_pass.grid == grid
    assert model.algm.tokens_per_layer[0] < grid[0] * grid[1]
    assert torch.equal(remove_algm(model)(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["patches", "patches in a module"])
def test_told_from_every_other_layer(kind):
    others: Any = {name: make() for name, make in OTHERS.items()}
    model: Any = Strange(STEMS[kind](), **others).eval()
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    model(photo())
    assert model.algm.last_pass.grid == (6, 5)


def test_two_candidates_are_named():
    model = Strange(patches(), "camera", lidar=patches())
    message = "Strange cannot be patched: model.camera, model.lidar all make tokens"
    with pytest.raises(ValueError, match=re.escape(message)):
        apply_algm(model)


@pytest.mark.parametrize("projection", [nn.Conv3d(3, WIDTH, 16, 16), nn.Conv1d(3, WIDTH, 16, 16)], ids=type)
def test_a_projection_of_videos_or_sounds_leaves_no_grid(projection):
    with pytest.raises(ValueError, match=rf"model\.conv1 cannot be patched: .* a {type(projection).__name__}, which"):
        apply_algm(Strange(projection))


class Encoder(nn.Module):
    """Adds positions, of a table, and runs the blocks."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(30, WIDTH)
        self.layers = nn.Sequential(*(Block(WIDTH, 4) for _ in range(5)))

    def forward(self, x):
        return self.layers(x + self.positions.weight)


@torch.no_grad()
def test_a_table_of_positions_is_none_of_words():
    model: Any = nn.Sequential(patches(), nn.Flatten(2), Transposed(), Encoder()).eval()
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    model(photo())
    assert model.algm.last_pass.grid == (6, 5)


class Transposed(nn.Module):
    def forward(self, x):
        return x.mT


class Tower(nn.Module):
    """Embeds words, and runs them through blocks of the kind of the ViT beside it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, WIDTH)
        self.layers = nn.Sequential(*(Block(WIDTH, 4) for _ in range(2)))


@pytest.mark.parametrize("trunk", [lambda: build("ViT"), lambda: Strange(patches())], ids=["listed", "found"])
@pytest.mark.parametrize("order", [1, -1])
def test_towers_and_decoders_beside_a_vit_have_none(trunk, order):
    neck = nn.Sequential(nn.Conv2d(32, WIDTH, 3, 2, 1))
    parts = [("text", Tower()), ("image", trunk()), ("decoder", nn.Sequential(Block(WIDTH, 4))), ("neck", neck)]
    model = nn.ModuleDict(dict(parts[::order]))
    assert apply_algm(model).algm is model["image"].algm


@pytest.mark.parametrize("last", [WIDTH, 2 * WIDTH])
def test_a_tower_beside_a_convolutional_network_has_none(last):
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 7, 2), nn.Conv2d(WIDTH, last, 3, 2))
    model = nn.ModuleDict({"image": network, "text": Tower()})
    with pytest.raises(ValueError, match=r"no patch projection .* blocks in model\.text\.layers"):
        apply_algm(model)


def test_blocks_beside_a_convolutional_network_of_other_width_have_none():
    network = nn.Sequential(nn.Conv2d(3, WIDTH, 7, 2), nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2))
    model = nn.ModuleDict({"image": network, "layers": nn.Sequential(*(Block(WIDTH, 4) for _ in range(5)))})
    with pytest.raises(ValueError, match=r"no patch projection .* blocks in model\.layers"):
        apply_algm(model)


class OnTopOfAVit(nn.Module):
    """Runs blocks of its own on what a whole ViT leaves of each frame."""

    def __init__(self, vit):
        super().__init__()
        self.embed = vit
        self.frame_blocks = nn.ModuleList(Block(WIDTH, 4) for _ in range(5))

    def forward(self, image):
        x = self.embed.forward_features(image)
        for block in self.frame_blocks:
            x = block(x)
        return x


@torch.no_grad()
def test_blocks_on_top_of_a_vit_have_its_projection_if_they_are_named():
    model: Any = OnTopOfAVit(build("ViT")).eval()
    expected = model(photo())
    assert apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5).algm is model.embed.algm
    remove_algm(model)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5, trunks=iter(["frame_blocks"]))
    for _ in range(2):
        model(photo())
        assert model.algm.last_pass.grid == (6, 5)
        assert model.algm.tokens_per_layer[0] < 31
        assert not hasattr(model.embed, "algm")
        apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)  # those that are patched
    assert torch.equal(remove_algm(model)(photo()), expected)


class Unnamed(nn.Module):
    """A norm whose class and parameters have names of their own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return self.gain * x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()


def test_the_width_of_blocks_is_read_off_their_layers_whatever_their_norms_are_called():
    model: Any = Strange(patches())
    for block in model.layers:
        block.norm1, block.norm2 = Unnamed(), Unnamed()
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=-1.0)
    model(torch.rand(1, 3, 64, 64))
    assert model.algm.tokens_per_layer[0] == 4


def test_a_linear_layer_that_is_called_after_patches_is_no_embedding_beside_one():
    """As the decoder's ``patch_proj`` in mmsegmentation: its inputs may be the pixels of a patch, by their number."""
    model = Strange(patches())
    decoder = nn.Module()
    decoder.patch_proj, decoder.layers = nn.Linear(WIDTH, WIDTH), nn.Sequential(Block(WIDTH, 4), Block(WIDTH, 4))
    both = nn.ModuleDict({"encoder": model, "decoder": decoder})
    assert apply_algm(both, gbm_layers=[3]).algm is model.algm
