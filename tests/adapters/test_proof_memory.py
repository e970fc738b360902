"""A proof of one block does not hold for another that computes differently."""

from typing import Any

import pytest
import torch
from torch import nn

from algm_patch.adapters import registry
from tests.support import mutants
from tests.support.plain_vits import MaeBlock


def test_another_class_of_a_part_does_not_ride_on_the_first_proof():
    known, other = MaeBlock(), MaeBlock()
    assert registry.adapter_of(known) is not None
    other.mlp = nn.Sequential(mutants.Mixing(), other.mlp)
    assert registry.adapter_of(other) is None
    assert registry.adapter_of(known) is not None


class Flagged(MaeBlock):
    """A block whose forward goes by an attribute."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        if getattr(self.how, "shift", self.how) in (True, 2):
            x = x.roll(1, 1)
        return x + self.feed(self.norm2(x))


class Config:
    """A configuration that blocks share."""

    def __init__(self, shift: bool) -> None:
        self.shift = shift


@pytest.mark.parametrize(
    ("fine", "wrong"),
    [(False, True), (3, 2), (Config(False), Config(True)), (torch.tensor(False), torch.tensor(True))],
)
def test_an_attribute_that_changes_the_forward_does_not_ride_on_the_first_proof(fine, wrong):
    assert registry.adapter_of(Flagged(fine)) is not None
    assert registry.adapter_of(Flagged(wrong)) is None


def test_a_method_that_is_replaced_does_not_ride_on_the_first_proof(monkeypatch):
    block, feed = MaeBlock(), MaeBlock.feed
    assert registry.adapter_of(block) is not None
    monkeypatch.setattr(MaeBlock, "feed", lambda self, x: feed(self, x.roll(1, 1)))
    assert registry.adapter_of(block) is None


class Switched(MaeBlock):
    """A block whose class says how far it shifts its tokens."""

    shift = 0

    def forward(self, x):
        return super().forward(x).roll(self.shift, 1)


def test_an_attribute_of_a_class_that_is_set_anew_does_not_ride_on_the_first_proof(monkeypatch):
    block = Switched()
    assert registry.adapter_of(block) is not None
    monkeypatch.setattr(Switched, "shift", 1)
    assert registry.adapter_of(block) is None
