"""Models that run blocks on several views of a scene in one sequence."""

import torch
from timm.models.vision_transformer import Block
from torch import nn

WIDTH = 16


class Folding(nn.Module):
    """Folds the views of a scene into one sequence, with tokens of its own before each view, and before all."""

    def __init__(self, inside: int = 0, before: int = 0, depth: int = 3):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.inside, self.before = (nn.Parameter(torch.randn(1, count, WIDTH)) for count in (inside, before))
        self.blocks = nn.ModuleList(Block(WIDTH, 2) for _ in range(depth))

    def embed(self, images):
        x = self.patches(images).flatten(2).mT
        return torch.cat([self.inside.expand(len(x), -1, -1), x], 1)

    def fold(self, views):  # [B, V, 3, h, w]
        return self.embed(views.flatten(0, 1)).unflatten(0, views.shape[:2]).flatten(1, 2)

    def forward(self, views):
        x = self.fold(views)
        x = torch.cat([self.before.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


class Alternating(Folding):
    """Runs some blocks on each view, and others on all views of a scene."""

    def __init__(self, inside: int = 0, before: int = 0, depth: int = 6, together=(1,)):
        super().__init__(inside, 0, depth)
        self.together = set(together)

    def forward(self, views):
        x = self.embed(views.flatten(0, 1))
        for layer, block in enumerate(self.blocks):
            if layer in self.together:
                x = block(x.unflatten(0, views.shape[:2]).flatten(1, 2)).unflatten(1, (views.shape[1], -1))
                x = x.flatten(0, 1)
            else:
                x = block(x)
        return x.unflatten(0, views.shape[:2]).flatten(1, 2)


class Interleaved(Alternating):
    """Puts the views of each patch one after the other, where it runs a block on all views."""

    def forward(self, views):
        batch, count = views.shape[:2]
        x = self.embed(views.flatten(0, 1))
        for layer, block in enumerate(self.blocks):
            if layer in self.together:
                x = block(x.unflatten(0, (batch, count)).transpose(1, 2).flatten(1, 2))
                x = x.unflatten(1, (-1, count)).transpose(1, 2).flatten(0, 1)
            else:
                x = block(x)
        return x.unflatten(0, (batch, count)).flatten(1, 2)


def scene(batch, views, height, width):
    return torch.rand(batch, views, 3, height * 4, width * 4)
