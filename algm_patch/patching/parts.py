"""The part of a module in a patched model: its attribute ``algm_part``."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from torch import nn

from ..adapters.base import Adapter
from .find_vit import Vit
from .runtime import Runtime
from .weighing import Weighing


@dataclass(frozen=True)
class Part:
    """Hold what every patched module knows."""

    runtime: Runtime

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """All that the module is patched for."""
        return (self.runtime,)

    def without(self, runtimes: Set[Runtime]) -> Part | None:
        """Return what is left of the part without these runtimes; None if nothing is."""
        return None if self.runtime in runtimes else self


@dataclass(frozen=True)
class OwnerPart:
    """Hold what a patched module around one trunk or several knows."""

    runtimes: tuple[Runtime, ...]

    def without(self, runtimes: Set[Runtime]) -> OwnerPart | None:
        """Return what is left of the part without these runtimes; None if nothing is."""
        left = tuple(runtime for runtime in self.runtimes if runtime not in runtimes)
        return OwnerPart(left) if left else None


@dataclass(frozen=True)
class TrunkPart(Part):
    """Hold what a patched trunk knows."""

    vit: Vit


@dataclass(frozen=True)
class ProjectionPart:
    """Hold what a patched patch projection knows: the runtimes that it tells the grid, and how each reads it."""

    feeds: tuple[tuple[Runtime, type[Adapter]], ...]

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """All that the module is patched for."""
        return tuple(runtime for runtime, _ in self.feeds)

    def without(self, runtimes: Set[Runtime]) -> ProjectionPart | None:
        """Return what is left of the part without these runtimes; None if nothing is."""
        left = tuple(feed for feed in self.feeds if feed[0] not in runtimes)
        return ProjectionPart(left) if left else None


@dataclass(frozen=True)
class BlockPart(Part):
    """Hold what a patched block knows. Layers count from 0.

    Attributes:
        weighing: watches whether the adapter uses the sizes of merged tokens; None if that is known.
    """

    layer: int
    adapter: type[Adapter]
    weighing: Weighing | None


AnyPart = Part | OwnerPart | ProjectionPart


def part_of(module: nn.Module) -> AnyPart | None:
    """Return a module's part; None if it is not patched."""
    return module.__dict__.get("algm_part")


def runtimes_in(modules: Iterable[nn.Module]) -> set[Runtime]:
    """Return all runtimes that modules are patched for."""
    return {runtime for module in modules if (part := part_of(module)) for runtime in part.runtimes}


def runtimes_of(model: nn.Module) -> set[Runtime]:
    """Return the runtimes of the blocks in a model, not of others that a part of it feeds; if it has none, those."""
    parts = map(part_of, model.modules())
    return {part.runtime for part in parts if isinstance(part, BlockPart)} or runtimes_in(model.modules())


def patched_trunks(model: nn.Module) -> dict[str, Runtime]:
    """Return the runtimes of the trunks in a model by name, as `trunk_names.names_of` names them."""
    found = {}
    for path, module in model.named_modules():
        part = part_of(module)
        if isinstance(part, TrunkPart):
            blocks = f"{path}.{part.vit.path}".lstrip(".")
            found[path if path and part.vit.alone else blocks] = part.runtime
    return found


def patched_modules(runtime: Runtime, model: nn.Module) -> set[nn.Module]:
    """Return the modules that were patched for a runtime, in ``model`` and wherever else they are."""
    held = {module for owner in {model, *runtime.owners} for module in owner.modules()}
    found = {module for module in held if (part := part_of(module)) and runtime in part.runtimes}
    if runtime.linked:
        found |= {runtime.trunk, *runtime.vit.modules}
    return found
