"""Patch a model, and undo it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from .handle import Algm
from .patching.class_swap import swap, unswap
from .patching.find_vit import find_decoders, find_vit, modules_around
from .patching.fit import check_fit
from .patching.identity import warn_of_other_model
from .patching.naming import class_name
from .patching.parts import BlockPart, Part, ProjectionPart, TrunkPart, part_of, patched_modules
from .patching.runtime import Runtime
from .settings import Settings
from .settings.checks import check_settings

Model = TypeVar("Model", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")
# In the place of an argument that was not given.
LEFT_OUT: Any = object()


def tells_what_is_left_out(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function gets LEFT_OUT for each argument that its caller left to a default other than None."""
    signature = inspect.signature(function)
    defaults = {name for name, each in signature.parameters.items() if each.default not in (each.empty, None)}

    @wraps(function)
    def filled(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.arguments.update(dict.fromkeys(defaults - given.arguments.keys(), LEFT_OUT))
        return function(*given.args, **given.kwargs)

    return filled


@tells_what_is_left_out
def apply_algm(
    model: Model,
    clap_layer: int | None = 1,
    gbm_layers: Iterable[int] = (5,),
    tau: float | str = "auto",
    *,
    settings: Settings | None = None,
    **changes: Any,
) -> Model:
    """Merge similar tokens inside a Vision Transformer, between attention and MLP of some of its blocks.

    In place, on the weights it has, without new parameters. Everything after the last block sees the full grid
    again. The handle ``model.algm`` shows what happens and changes the settings. Called again, the newer settings
    hold. `remove_algm` undoes it.

    Args:
        model: a ViT, or a model with one ViT in it.
        clap_layer, gbm_layers, tau: see `Settings`.
        settings: what `tune`, ``Settings.load(path)`` or ``model.algm.settings`` gave. Default: the defaults.
        changes: any other field of `Settings`. What is given here, and above by hand, takes the place of that
            of ``settings``.

    Returns:
        The same model.

    Raises:
        ValueError, TypeError: if a setting is unknown or out of its range, or the model cannot be patched; the model is
            then as it was.

    Examples:
        >>> import timm, torch
        >>> model = timm.create_model("vit_tiny_patch16_224").eval()
        >>> model = apply_algm(model, clap_layer=1, gbm_layers=[5])
        >>> model.forward_features(torch.rand(1, 3, 224, 224)).shape
        torch.Size([1, 197, 192])
    """
    by_hand = {"clap_layer": clap_layer, "gbm_layers": gbm_layers, "tau": tau}
    given = {name: value for name, value in by_hand.items() if value is not LEFT_OUT}
    settings = (Settings() if settings is None else check_settings(settings)).replace(**given, **changes)
    trunk, vit = find_vit(model)
    check_fit(settings, vit, class_name(trunk))
    decoders = find_decoders(model) if settings.unmerge_at == "after_head" else {}
    before = part_of(trunk)
    check_free(model, trunk, (*vit.blocks, *vit.drivers, vit.projection, *decoders, *decoders.values()), before)
    runtime = Runtime(trunk, len(vit.blocks), settings)
    runtime.owners.update([model, trunk, *(before.runtime.owners if before else [])])
    if before:
        unswap(patched_modules(before.runtime, model))
    swap(trunk, "trunk", TrunkPart(runtime, vit))
    swap(vit.projection, "projection", ProjectionPart(runtime, vit.adapters[0]))
    for driver in vit.drivers:
        swap(driver, "driver", Part(runtime))
    for decoder, head in decoders.items():
        swap(decoder, "decoder", Part(runtime))
        swap(head, "head", Part(runtime))
    for layer, (block, adapter) in enumerate(zip(vit.blocks, vit.adapters, strict=True)):
        swap(block, "block", BlockPart(runtime, layer, adapter))
    for owner in modules_around(model, trunk):
        if part_of(owner) is None and has_own_forward(owner):
            swap(owner, "owner", Part(runtime))
    show(runtime)
    warn_of_other_model(runtime)
    return model


def check_free(model: nn.Module, trunk: nn.Module, parts: Iterable[nn.Module], before: Part | None) -> None:
    """Raise ValueError if a module is patched already, for another model than ``before``, or has another ``algm``."""
    for module in parts:
        part = part_of(module)
        if part and (before is None or part.runtime is not before.runtime):
            raise ValueError(
                f"a {class_name(module)} of {class_name(trunk)} is patched already, as part of another model. "
                "Call remove_algm on that model first"
            )
    for module in (model, trunk):
        if not isinstance(getattr(module, "algm", None), Algm | None):
            raise ValueError(f"{class_name(module)} has an attribute 'algm' of its own, where the handle would go")


def show(runtime: Runtime) -> None:
    """Give the owners of a runtime one handle: that which they have, if they are patched anew."""
    handles = [handle for owner in runtime.owners if isinstance(handle := owner.__dict__.get("algm"), Algm)]
    handle = handles[0] if handles else Algm(runtime)
    handle.runtime = runtime
    for owner in runtime.owners:
        owner.algm = handle  # type: ignore[assignment]


def remove_algm(model: Model) -> Model:
    """Undo `apply_algm`: classes, attributes and outputs are again what they were.

    Raises:
        ValueError: if the model is not patched, or was changed since in a way that must be undone first.
    """
    runtimes = {part.runtime for part in map(part_of, model.modules()) if part}
    if not runtimes:
        raise ValueError(f"remove_algm: {class_name(model)} is not patched")
    unswap({module for runtime in runtimes for module in patched_modules(runtime, model)})
    for owner in {*model.modules(), *(owner for runtime in runtimes for owner in runtime.owners)}:
        handle = owner.__dict__.get("algm")
        if isinstance(handle, Algm) and handle.runtime in runtimes:
            del owner.__dict__["algm"]
    return model


def has_own_forward(owner: nn.Module) -> bool:
    """Return whether a module's class says how it runs its parts: torch's containers and wrappers only call them."""
    return "forward" not in owner.__dict__ and not type(owner).__module__.startswith("torch.")
