"""The part of a module in a patched model: its attribute ``algm_part``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..adapters.base import Adapter
from .find_vit import Vit
from .runtime import Runtime


@dataclass(frozen=True)
class Part:
    """Hold what every patched module knows."""

    runtime: Runtime


@dataclass(frozen=True)
class TrunkPart(Part):
    """Hold what a patched trunk knows."""

    vit: Vit


@dataclass(frozen=True)
class ProjectionPart(Part):
    """Hold what a patched patch projection knows."""

    adapter: type[Adapter]


@dataclass(frozen=True)
class BlockPart(Part):
    """Hold what a patched block knows. Layers count from 0."""

    layer: int
    adapter: type[Adapter]


def part_of(module: nn.Module) -> Part | None:
    """Return a module's part; None if it is not patched."""
    return module.__dict__.get("algm_part")


def patched_modules(runtime: Runtime, model: nn.Module) -> set[nn.Module]:
    """Return the modules that were patched for a runtime, in ``model`` and wherever else they are."""
    held = {module for owner in {model, *runtime.owners} for module in owner.modules()}
    found = {module for module in held if (part := part_of(module)) and part.runtime is runtime}
    if runtime.linked:
        vit = runtime.vit
        found |= {runtime.trunk, vit.projection, *vit.drivers, *vit.blocks}
    return found
