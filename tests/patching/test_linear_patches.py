"""Linear layers that make tokens of patches: the grid follows from the image and the size of a patch."""

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from algm_patch import apply_algm, remove_algm
from algm_patch.core.compiling import ONE_GRAPH
from tests.support.models import photo

WIDTH = 64


def cut(image, height=16, width=16):
    """Return patches [B, N, C * height * width]."""
    return nn.functional.unfold(image, (height, width), stride=(height, width)).mT


class Cut(nn.Module):
    def forward(self, image):
        return cut(image)


class PatchGenerator(nn.Module):
    """Cuts the image, embeds the patches, and puts registers before them."""

    def __init__(self, inputs=3 * 16 * 16):
        super().__init__()
        self.embedder = nn.Linear(inputs, WIDTH)
        self.registers = nn.Parameter(torch.randn(1, 6, WIDTH))

    def forward(self, image):
        x = self.embedder(cut(image))
        return torch.cat([self.registers.expand(len(x), -1, -1), x], 1), "positions"


class Linearly(nn.Module):
    """Runs known blocks on what a linear layer makes of patches."""

    def __init__(self, name: str, embedding: nn.Module, embed: Any = None):
        super().__init__()
        self.add_module(name, embedding)
        self.name, self.embed = name, embed
        self.layers = nn.ModuleList(Block(WIDTH, 4) for _ in range(5))
        self.other, self.head = nn.Linear(3 * 16 * 16, WIDTH), nn.Linear(WIDTH, 3 * 16 * 16)

    def forward(self, image):
        embedding = self.get_submodule(self.name)
        x = embedding(image) if self.embed is None else self.embed(embedding, image)
        x = x[0] if isinstance(x, tuple) else x
        x = x if x.dim() == 3 else x.flatten(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x


def sequence():
    inputs = 3 * 16 * 16
    return nn.Sequential(Cut(), nn.LayerNorm(inputs), nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH))


class Table(nn.Module):
    """Leaves tokens as [B, H, W, D]."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3 * 16 * 16, WIDTH)

    def forward(self, image):
        rows, columns = image.shape[2] // 16, image.shape[3] // 16
        return self.proj(cut(image).unflatten(1, (rows, columns)))


LINEAR = {
    "sequence": lambda: Linearly("to_patch_embedding", sequence()),
    "generator with registers": lambda: Linearly("patch_generator", PatchGenerator()),
    "table": lambda: Linearly("patch_embed", Table()),
    "cut by the trunk": lambda: Linearly(
        "patch_to_embedding", nn.Linear(3 * 16 * 16, WIDTH), lambda embed, image: embed(cut(image))
    ),
    "one channel": lambda: Linearly(
        "patches", nn.Linear(16 * 16, WIDTH), lambda embed, image: embed(cut(image[:, :1]))
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", LINEAR)
def test_a_linear_layer_that_makes_tokens_of_patches(kind):
    torch.manual_seed(0)
    model: Any = LINEAR[kind]().eval()
    image = photo()
    image = image[:, :1] if kind == "one channel" else image
    expected = model(image)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    model(image)
    prefix = 6 if "registers" in kind else 0
    assert (model.algm.last_pass.grid, model.algm.last_pass.num_prefix_tokens) == ((6, 5), prefix)
    assert model.algm.tokens_per_layer[0] < 30 + prefix
    assert model.algm.gflops > 0
    with model.algm.using(tau=1.05, gbm_tau=1.05):
        assert torch.equal(model(image), expected)
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    assert torch.equal(remove_algm(model)(image), expected)
    assert not any("algm_part" in module.__dict__ for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda embed, image: embed(cut(image, 8, 32)), r"left \[2, 24, 64\] of an image \[2, 3, 96, 80\]"),
        (lambda embed, image: embed(nn.functional.unfold(image, 16, stride=8).mT), r"left \[2, 99, 64\] of an image"),
        (lambda embed, image: embed(cut(nn.functional.pad(image, (0, 16)))), r"left \[2, 36, 64\] of an image"),
    ],
    ids=["not square", "overlaps", "padding"],
)
def test_other_patches_than_squares_are_refused(embed, message):
    model = Linearly("patch_to_embedding", nn.Linear(3 * 16 * 16, WIDTH), embed).eval()
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    with pytest.raises(ValueError, match=message):
        model(photo())


@torch.no_grad()
def test_patches_without_an_image_are_refused():
    model: Any = LINEAR["sequence"]().eval()
    apply_algm(model, clap_layer=1, gbm_layers=[3])
    model(photo())
    with pytest.raises(ValueError, match=r"was given no image \[B, C, H, W\]"):
        model.to_patch_embedding[2](cut(photo()))


@torch.no_grad()
def test_copied_and_compiled_with_a_linear_layer():
    model: Any = LINEAR["generator with registers"]().eval()
    apply_algm(model, clap_layer=1, gbm_layers=[3], tau=0.5)
    expected = model(photo())
    assert torch.equal(copy.deepcopy(model)(photo()), expected)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(photo()), expected)
    if not ONE_GRAPH:
        return
    fixed = apply_algm(LINEAR["cut by the trunk"]().eval(), clap_layer=1, gbm_layers=[3], merge_to=0.6)
    compiled = torch.compile(fixed, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(photo()), fixed(photo()))
