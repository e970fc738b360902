"""Exports of small models, and their comparison with the models."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import free_symbols

from algm_patch import apply_algm
from tests.support import cases_segmenter, models, models_huggingface
from tests.support.batches import CLOSE, unlike
from tests.support.cases import CASES
from tests.support.contract import trace

# Small: an export takes seconds. The second of two blocks has attention on what both merges left.
FIXED: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [1], "merge_to": 0.6}
BY_THRESHOLD: dict[str, Any] = {"clap_layer": 1, "gbm_layers": [1], "tau": 0.5}
NAMES = (
    "timm ViT",
    "timm EVA-02",
    "timm DINOv3",
    "timm BEiT",
    "timm relative positions",
    "transformers DINOv2",
    "transformers DINOv3",
    "transformers BEiT, bias per layer",
    "Segmenter mask transformer",
)
MODES = pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
EVERY = pytest.mark.parametrize("name", NAMES)


class Call(nn.Module):
    """A module that applies a function to a model and images."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, images):
        return self.call(self.model, images)


def build(name):
    """Return an unpatched model of two blocks, from images to final tokens."""
    library, _, family = name.partition(" ")
    if library == "timm":
        model = models.build(family, depth=2)
    elif library == "transformers":
        model = models_huggingface.build(family, num_hidden_layers=2)
    else:
        model = cases_segmenter.build("mask", depth=2)
    return Call(model.requires_grad_(False), CASES[name].tokens)


def five_images(like):
    """Return five unlike images, as large as ``like``."""
    return torch.cat([unlike(like), torch.randn(1, *like.shape[1:], generator=torch.Generator().manual_seed(2))])


def export(model, images, strict=False):
    """Export a model with two images, for any number of them."""
    return torch.export.export(model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)


def assert_equal_to_eager(exported, model, images, tolerance=CLOSE):
    for count in (1, 3, 5):
        torch.testing.assert_close(exported(images[:count]), model(images[:count]), **tolerance)


def nodes(program):
    """Yield the operations of an exported program and of the graphs in it."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from (node for node in module.graph.nodes if node.op == "call_function")


def read_from_values(program):
    """Return the operations that make a number of what a tensor holds."""
    return {
        str(node.target)
        for node in nodes(program)
        if torch.Tag.data_dependent_output in getattr(node.target, "tags", ())
    }


def symbols(program):
    """Return the symbols that the shapes in an exported program depend on."""
    return set().union(*(free_symbols(node.meta["val"]) for node in nodes(program) if node.meta.get("val") is not None))


@cache
def exported(name, strict=False):
    """Return a patched model and its export, the trace and state before it, and the printed handle after it."""
    torch.manual_seed(0)
    model, images = apply_algm(build(name), **FIXED), five_images(CASES[name].image())
    before = SimpleNamespace(
        parts=trace(model), state={key: value.clone() for key, value in model.state_dict().items()}
    )
    program = export(model, images, strict)
    return SimpleNamespace(model=model, images=images, program=program, before=before, described=str(model.algm))
