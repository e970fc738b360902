"""Swap the classes of modules for subclasses that merge, and swap them back."""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import cache
from typing import Any

from torch import nn

from ..adapters.base import Adapter
from ..adapters.instance_forward import is_wrapped, rebind
from ..adapters.registry import readers_of
from ..adapters.unpatched import unpatched
from ..core.compiling import refuse_jit_script
from .forwards import METHODS
from .naming import class_name
from .parts import AnyPart, OwnerPart, ProjectionPart, part_of
from .runtime import Runtime


def swap(module: nn.Module, role: str, part: AnyPart) -> None:
    """Patch a module: give it its part, and a class whose methods do it."""
    module.algm_part = part  # type: ignore[assignment]
    cls: Any = type(module)
    change_class(module, patched_class(cls, role, tuple(readers_of(cls).items())))


def watch(owner: nn.Module, runtime: Runtime) -> None:
    """Patch a module around a trunk, which may be around another, if its class says how it runs its parts."""
    part = part_of(owner)
    if isinstance(part, OwnerPart):
        owner.algm_part = OwnerPart((*part.runtimes, runtime))  # type: ignore[assignment]
    elif part is None and has_own_forward(owner):
        swap(owner, "owner", OwnerPart((runtime,)))


def feed(projection: nn.Module, runtime: Runtime, grid_reader: type[Adapter]) -> None:
    """Patch a patch projection, which may feed another trunk too."""
    part = part_of(projection)
    if isinstance(part, ProjectionPart):
        projection.algm_part = ProjectionPart((*part.feeds, (runtime, grid_reader)))  # type: ignore[assignment]
    else:
        swap(projection, "projection", ProjectionPart(((runtime, grid_reader),)))


def check_takes_subclass(cls: type[nn.Module]) -> None:
    """Raise ValueError if a class of modules takes no subclass, such as patched ones have."""
    try:
        type(cls.__name__, (cls,), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
    except Exception as error:
        raise ValueError(
            f"{cls.__name__} takes no subclass, which ALGM gives patched modules in the place of their class: its "
            f"__init_subclass__ raised {type(error).__name__}: {error}. Let it take one"
        ) from error


def has_own_forward(owner: nn.Module) -> bool:
    """Return whether a module's class says how it runs its parts: torch's containers and wrappers only call them."""
    return "forward" not in owner.__dict__ and not type(owner).__module__.startswith("torch.")


def unswap(modules: Iterable[nn.Module], runtimes: Set[Runtime]) -> None:
    """Undo what `swap` and `watch` did to modules for these runtimes.

    Raises:
        ValueError: if the class of one was changed since; then nothing is undone.
    """
    left = {module: part.without(runtimes) for module in modules if (part := part_of(module))}
    for module in left:
        if "algm_original" not in vars(type(module)):
            raise ValueError(
                f"the class of {class_name(module)} was changed after apply_algm, to {type(module)}. Undo that first. "
                "What cannot be undone, such as fully_shard, goes before apply_algm"
            )
    for module, part in left.items():
        if part is not None:
            module.algm_part = part  # type: ignore[assignment]
            continue
        change_class(module, unpatched(type(module)))
        del module.__dict__["algm_part"]


def change_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Give a module another class, and the forward that was set on it, unless it hides the class's, that class's."""
    hidden = is_wrapped(module)
    module.__class__ = cls
    if not hidden:
        rebind(module)


@cache
def patched_class(original: Any, role: str, readers: tuple[tuple[str, Any], ...]) -> Any:
    """Return a subclass that looks like its parent and is cached, so that equal modules stay of one class.

    Args:
        readers: the methods that are known to run the blocks, by name, of which more may be registered later.
    """
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce_patched,
        "__prepare_scriptable__": refuse_jit_script,
        "algm_original": original,
        "algm_role": role,
        **METHODS[role](original, dict(readers)),
    }
    return type(original.__name__, (original,), attributes)


def reduce_patched(self: Any, protocol: Any) -> Any:
    """Copy and pickle by the original class: the subclass has no importable name."""
    cls: Any = next(cls for cls in type(self).__mro__ if "algm_original" in vars(cls))
    _, _, *state = super(cls, self).__reduce_ex__(protocol)
    return new_patched, (cls.algm_original, cls.algm_role), *state


def new_patched(original: Any, role: str) -> Any:
    """Return a patched module without attributes yet, for copies and pickles."""
    cls = patched_class(original, role, tuple(readers_of(original).items()))
    return cls.__new__(cls)
