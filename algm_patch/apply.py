"""Patch a model, and undo it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from .adapters.unpatched import unpatched
from .handle import Algm
from .patching.class_swap import check_takes_subclass, feed, swap, unswap, watch
from .patching.find_vit import Vit, find_decoders, find_vits
from .patching.fit import check_fit
from .patching.identity import warn_of_other_model
from .patching.naming import check_model, class_name
from .patching.parts import BlockPart, Part, TrunkPart, part_of, patched_modules, runtimes_in, runtimes_of
from .patching.runtime import Runtime
from .patching.trunk_names import modules_around
from .patching.weighing import weighing_of
from .settings import Settings
from .settings.checks import check_settings
from .trunks import Trunks, hand_over, handles_in, show

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
    trunks: str | Iterable[str] | None = None,
    settings: Settings | None = None,
    **changes: Any,
) -> Model:
    """Merge similar tokens inside a Vision Transformer, between attention and MLP of some of its blocks.

    In place, on the weights it has, without new parameters. Everything after the last block sees the full grid
    again. The handle ``model.algm`` shows what happens and changes the settings. Called again, the newer settings
    hold. `remove_algm` undoes it.

    Args:
        model: a ViT, or a model with ViTs in it.
        clap_layer, gbm_layers, tau: see `Settings`.
        trunks: of a model with several ViTs, those to patch: paths of modules, such as ``["teacher.encoder"]``, or
            "all". Others stay as they are. Default: the one there is, or those that are patched already.
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
    found = find_vits(model, trunks)
    check_apart(found)
    for name, (trunk, vit) in found.items():
        check_fit(settings, vit, class_name(trunk) if len(found) == 1 else f"{name} ({class_name(trunk)})")
    decoders = decoders_of(model, settings, found)
    for trunk, vit in found.values():
        check_free(model, trunk, vit, decoders)
    parts = {trunk: part for trunk, _ in found.values() if (part := trunk_part(trunk))}
    replaced = {part.runtime for part in parts.values()}
    unswap({module for runtime in replaced for module in patched_modules(runtime, model)}, replaced)
    for trunk, vit in found.values():
        runtime = Runtime(trunk, len(vit.blocks), settings)
        patch(model, trunk, vit, runtime, decoders)
        hand_over(runtime, {model, trunk}, parts[trunk].runtime if trunk in parts else None)
        warn_of_other_model(runtime)
    return model


# By name, the trunks that are to be patched, with their parts.
Found = Mapping[str, tuple[nn.Module, Vit]]


def decoders_of(model: nn.Module, settings: Settings, found: Found) -> dict[nn.Module, nn.Module]:
    """Return the decoders that are to run on merged tokens, each with the module in it whose output is unmerged."""
    if settings.unmerge_at != "after_head":
        return {}
    if len(found) > 1:
        raise ValueError(
            f"unmerge_at='after_head' takes one ViT, whose tokens the decoder runs on; {', '.join(found)} are "
            f"{len(found)}. Name it, as in trunks={next(iter(found))!r}"
        )
    return find_decoders(model)


def check_apart(found: Found) -> None:
    """Raise ValueError if two of the trunks have a module in common that they cannot share."""
    taken: dict[nn.Module, str] = {}
    for name, (trunk, vit) in found.items():
        for module in {trunk, *vit.modules}:
            other = taken.setdefault(module, name)
            if other != name and not may_share(module, trunk, vit, found[other][0]):
                part = "block" if module in vit.blocks else "patch embedding"
                raise ValueError(f"{other} and {name} have one {part}. Name one of them in trunks")


def may_share(module: nn.Module, trunk: nn.Module, vit: Vit, other: nn.Module) -> bool:
    """Return whether another trunk may have a module of a ViT: a convolution, if one trunk is inside the other.

    Then one run of it feeds both.
    """
    nested = trunk is not other and (trunk in set(other.modules()) or other in set(trunk.modules()))
    return nested and module is vit.projection and vit.embedding is None and not vit.cuts


def check_free(model: nn.Module, trunk: nn.Module, vit: Vit, decoders: Mapping[nn.Module, nn.Module]) -> None:
    """Raise ValueError if a module is patched already, for another trunk, or has another ``algm``."""
    before = trunk_part(trunk)
    if before and before.vit.path != vit.path:
        raise ValueError(
            f"{class_name(trunk)} is patched already for the blocks in {before.vit.path}, which the patch embedding of "
            f"{vit.path} feeds too. Call remove_algm first"
        )
    for module in (*modules_around(model, trunk), *vit.modules, *decoders, *decoders.values()):
        check_takes_subclass(unpatched(type(module)))
    for module in (*vit.modules, *decoders, *decoders.values()):
        others = runtimes_in([module]) - ({before.runtime} if before else set())
        if not all(other.linked and may_share(module, trunk, vit, other.trunk) for other in others):
            raise ValueError(
                f"a {class_name(module)} of {class_name(trunk)} is patched already, as part of another model. "
                "Call remove_algm on that model first"
            )
    for module in (model, trunk):
        if not isinstance(getattr(module, "algm", None), Algm | Trunks | None):
            raise ValueError(f"{class_name(module)} has an attribute 'algm' of its own, where the handle would go")


def trunk_part(trunk: nn.Module) -> TrunkPart | None:
    """Return the part of a trunk; None if it is not patched, or only because it holds another."""
    part = part_of(trunk)
    return part if isinstance(part, TrunkPart) else None


def patch(
    model: nn.Module, trunk: nn.Module, vit: Vit, runtime: Runtime, decoders: Mapping[nn.Module, nn.Module]
) -> None:
    """Patch the modules of one trunk, and those around it up to the whole model."""
    around = part_of(trunk)
    if around:  # of another trunk, which is inside this one and tells itself when a pass is over
        unswap([trunk], set(around.runtimes))
    role = f"{'cutting ' if vit.cuts else ''}trunk{'' if vit.driven else ' of several'}"
    swap(trunk, role, TrunkPart(runtime, vit))
    feed(vit.projection, runtime, vit.grid_reader)
    if vit.embedding is not None:
        swap(vit.embedding, "embedding", Part(runtime))
    for driver in vit.drivers:
        swap(driver, "driver", Part(runtime))
    for decoder, head in decoders.items():
        swap(decoder, "decoder", Part(runtime))
        swap(head, "head", Part(runtime))
    for layer, (block, adapter) in enumerate(zip(vit.blocks, vit.adapters, strict=True)):
        swap(block, "block", BlockPart(runtime, layer, adapter, weighing_of(adapter)))
    for owner in modules_around(model, trunk):
        watch(owner, runtime)


def remove_algm(model: Model) -> Model:
    """Undo `apply_algm`: classes, attributes and outputs are again what they were.

    Args:
        model: as it was patched, or one of its ViTs: then the others stay patched.

    Raises:
        ValueError: if the model is not patched, or was changed since in a way that must be undone first.
        TypeError: if ``model`` is no module.
    """
    check_model(model)
    runtimes = runtimes_of(model)
    if not runtimes:
        raise ValueError(f"remove_algm: {class_name(model)} is not patched")
    owners = {*model.modules(), *(owner for runtime in runtimes for owner in runtime.owners)}
    shown = [owner for owner in owners if isinstance(owner.__dict__.get("algm"), Algm | Trunks)]
    handles = handles_in(shown)
    unswap({module for runtime in runtimes for module in patched_modules(runtime, model)}, runtimes)
    show(shown, handles)
    return model
