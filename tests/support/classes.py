"""A small model that tells the class of each patch."""

import torch
from torch import nn

from tests.support.models import build


class Classes(nn.Module):
    """A trunk and a head of five classes: [B, 5, 6, 5]."""

    def __init__(self, family: str = "ViT") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = build(family, depth=3)
        self.head = nn.Linear(self.trunk.embed_dim, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.trunk.forward_features(images)[:, self.trunk.num_prefix_tokens :]
        return self.head(tokens).mT.unflatten(2, (6, 5))
