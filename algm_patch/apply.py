"""Find a model's blocks, swap their classes for ones that merge, and swap them back."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from .adapters.base import Adapter
from .adapters.registry import is_wrapped, readers_of, unpatched
from .core.compiling import by_frames, directly, outside, refuse_jit_script, refuse_jit_trace
from .handle import Algm, check_fit
from .patching.find_vit import Vit, around, class_name, find_decoders, find_vit
from .patching.halves import attention_half, mlp_half
from .settings.checks import check_settings
from .settings.record import Record
from .settings.settings import Settings

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
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.arguments.update(dict.fromkeys(defaults - given.arguments.keys(), LEFT_OUT))
        return function(*given.args, **given.kwargs)

    return told


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
    hold. :func:`remove_algm` undoes it.

    Args:
        model: a ViT, or a model with one ViT in it.
        clap_layer, gbm_layers, tau: see :class:`Settings`.
        settings: what :func:`tune`, ``Settings.load(path)`` or ``model.algm.settings`` gave. Default: the defaults.
        changes: any other field of :class:`Settings`. What is given here, and above by hand, takes the place of that
            of ``settings``.

    Returns:
        The same model.

    Raises:
        ValueError, TypeError: if a setting is unknown or out of its range, or the model cannot be patched; the model is
            then as it was.

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
    old = patch_of(trunk)
    handle = old.handle if old else Algm()
    for module in (*vit.blocks, *vit.drivers, vit.projection, *decoders, *decoders.values()):
        patch = patch_of(module)
        if patch and patch.handle is not handle:
            raise ValueError(
                f"a {class_name(module)} of {class_name(trunk)} is patched already, as part of another model. "
                "Call remove_algm on that model first"
            )
    for module in (model, trunk):
        if not isinstance(getattr(module, "algm", handle), Algm):
            raise ValueError(f"{class_name(module)} has an attribute 'algm' of its own, where the handle would go")
    if old:
        unswap(patched_modules(handle, model))
    swap(trunk, "trunk", TrunkPatch(handle, vit))
    swap(vit.projection, "projection", ProjectionPatch(handle, vit.adapters[0]))
    for driver in vit.drivers:
        swap(driver, "driver", Patch(handle))
    for decoder, head in decoders.items():
        swap(decoder, "decoder", Patch(handle))
        swap(head, "head", Patch(handle))
    for layer, (block, adapter) in enumerate(zip(vit.blocks, vit.adapters, strict=True)):
        swap(block, "block", BlockPatch(handle, layer, adapter))
    handle._link(trunk)
    handle._begin(settings)
    handle._owners.update([model, trunk])
    for owner in handle._owners:
        owner.algm = handle
    for module in around(model, trunk):
        if patch_of(module) is None and has_own_forward(module):
            swap(module, "owner", Patch(handle))
    if settings.record is not None:
        warn_of_mismatch(settings.record, handle)
    return model


def warn_of_mismatch(record: Record, handle: Algm) -> None:
    if difference := record.mismatch(*handle._identity()):
        warnings.warn(f"these settings were measured {difference}. Measure anew: tune(model, images)", stacklevel=4)


def remove_algm(model: Model) -> Model:
    """Undo :func:`apply_algm`: classes, attributes and outputs are again what they were.

    Raises:
        ValueError: if the model is not patched, or was changed since in a way that must be undone first.
    """
    handles = {patch.handle for patch in map(patch_of, model.modules()) if patch}
    if not handles:
        raise ValueError(f"remove_algm: {class_name(model)} is not patched")
    unswap({part for handle in handles for part in patched_modules(handle, model)})
    for owner in {*model.modules(), *(owner for handle in handles for owner in handle._owners)}:
        if owner.__dict__.get("algm") in handles:
            del owner.__dict__["algm"]
    return model


def has_own_forward(owner: nn.Module) -> bool:
    """Return whether a module's class says how it runs its parts: torch's containers and wrappers only call them."""
    return "forward" not in owner.__dict__ and not type(owner).__module__.startswith("torch.")


def patched_modules(handle: Algm, model: nn.Module) -> set[nn.Module]:
    """The modules that were patched for this handle, in ``model`` and wherever else they are."""
    parts = {part for owner in {model, *handle._owners} for part in owner.modules()}
    found = {part for part in parts if (patch := patch_of(part)) and patch.handle is handle}
    if handle._linked:
        vit = handle._vit
        found |= {handle._the_trunk(), vit.projection, *vit.drivers, *vit.blocks}
    return found


# -- swapping classes


@dataclass(frozen=True)
class Patch:
    """What a patched module knows, as its attribute ``_algm``."""

    handle: Algm


@dataclass(frozen=True)
class TrunkPatch(Patch):
    vit: Vit


@dataclass(frozen=True)
class ProjectionPatch(Patch):
    adapter: type[Adapter]


@dataclass(frozen=True)
class BlockPatch(Patch):
    layer: int  # from 0
    adapter: type[Adapter]


def run_block(
    call: Callable[..., Any], original: Callable[..., Any], block: Any, x: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A patched block's forward: attention half, merge, MLP half; or merge last.

    Args:
        call: calls what no compiler shall look into, unless it traces all of the forward pass.
        original: the forward of the block's own class.
    """
    patch: BlockPatch = block._algm
    handle, layer, adapter = patch.handle, patch.layer, patch.adapter
    forward_pass, step = call(handle._step, layer, x)
    stages = forward_pass.stages(layer)
    if step.before is None and not stages:
        output = original(block, x, *args, **kwargs)
    else:
        settings = forward_pass.settings
        x, tokens = call(forward_pass.enter, step, x)
        run = directly if tokens.packing is None else call
        metric = settings.compare if stages and not step.plans else "token"
        x, features = run(attention_half, adapter, metric, block, x, tokens, *args, **kwargs)
        if settings.place == "after_mlp":
            x = run(mlp_half, adapter, block, x, step.before)
        x = call(forward_pass.merge, layer, x, features)
        if settings.place == "before_mlp":
            x = run(mlp_half, adapter, block, x, step.after)
        output = adapter.pack(block, call(forward_pass.leave, step, x, layer + 1 == handle._depth))
    call(handle._remember, output[0] if isinstance(output, tuple) else output, forward_pass)
    return output


# What a compiler that cannot have the merges in its graph leaves alone: this frame. It compiles the halves.
run_block_by_halves = by_frames(run_block)


def swap(module: nn.Module, role: str, patch: Patch) -> None:
    drop_repeated_forward(module)
    module._algm = patch  # type: ignore[assignment]
    cls: Any = type(module)
    module.__class__ = patched_class(cls, role)


def unswap(modules: Iterable[nn.Module]) -> None:
    """Undo :func:`swap`; raise ValueError, and undo nothing, if the class of one was changed since."""
    modules = list(modules)
    for module in modules:
        if "_algm_original" not in vars(type(module)):
            raise ValueError(
                f"the class of {class_name(module)} was changed after apply_algm, to {type(module)}. Undo that first. "
                "What cannot be undone, such as fully_shard, goes before apply_algm"
            )
    for module in modules:
        drop_repeated_forward(module)
        module.__class__ = unpatched(type(module))
        del module.__dict__["_algm"]


def drop_repeated_forward(module: nn.Module) -> None:
    """Drop a forward set on the instance that is its class's own, before the class changes."""
    if not is_wrapped(module):
        module.__dict__.pop("forward", None)


@cache
def patched_class(original: Any, role: str) -> Any:
    """A subclass that looks like its parent and is cached, so that equal modules stay of one class."""
    attributes = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "__reduce_ex__": reduce_patched,
        "__prepare_scriptable__": refuse_jit_script,
        "_algm_original": original,
        "_algm_role": role,
        **METHODS[role](original),
    }
    return type(original.__name__, (original,), attributes)


def block_methods(original: Any) -> dict[str, Any]:
    first = next(name for name in inspect.signature(original.forward).parameters if name != "self")

    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_jit_trace()
        if not args and first not in kwargs:
            return original.forward(self, **kwargs)  # which raises its own TypeError
        x, *others = args or (kwargs.pop(first),)
        if self._algm.handle._in_graph():
            return run_block(directly, original.forward, self, x, *others, **kwargs)
        return run_block_by_halves(outside, original.forward, self, x, *others, **kwargs)

    return {"forward": forward}


def projection_methods(original: Any) -> dict[str, Any]:
    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_jit_trace()
        output = original.forward(self, *args, **kwargs)
        handle = self._algm.handle
        call = directly if handle._in_graph(begun=False) else outside
        call(handle._open, call(self._algm.adapter.grid, self, output, *args, **kwargs))
        return output

    return {"forward": forward}


def trunk_methods(original: Any) -> dict[str, Any]:
    def restore(self: Any, state: Any) -> None:
        original.__setstate__(self, state)
        if not self._algm.handle._linked:  # a copied handle finds its copied trunk
            self._algm.handle._link(self)

    return {"__setstate__": restore, **owner_methods(original), **driver_methods(original)}


def owner_methods(original: Any) -> dict[str, Any]:
    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original.forward(self, *args, **kwargs)
        self._algm.handle._over()
        return output

    return {"forward": forward}


def driver_methods(original: Any) -> dict[str, Any]:
    def reader(method: Any, blocks_read: Callable[..., Iterable[int]]) -> Any:
        def read(call: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
            handle = self._algm.handle
            with handle._passes.reading(frozenset(blocks_read(self, *args, **kwargs))):
                output = method(self, *args, **kwargs)
                call(handle._leave, output)
            return output

        read_outside = by_frames(read)

        @wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self._algm.handle._in_graph(begun=False):
                return read(directly, self, *args, **kwargs)
            return read_outside(outside, self, *args, **kwargs)

        return run

    return {name: reader(getattr(original, name), blocks_read) for name, blocks_read in readers_of(original).items()}


def decoder_methods(original: Any) -> dict[str, Any]:
    @wraps(original.forward)
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        refuse_jit_trace()
        handle = self._algm.handle
        call = directly if handle._in_graph(begun=False) else outside
        return call(handle._decode, partial(original.forward, self), x, *args, **kwargs)

    return {"forward": forward}


def head_methods(original: Any) -> dict[str, Any]:
    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        handle = self._algm.handle
        call = directly if handle._in_graph(begun=False) else outside
        return call(handle._decoded, original.forward(self, *args, **kwargs))

    return {"forward": forward}


METHODS = {
    "block": block_methods,
    "projection": projection_methods,
    "trunk": trunk_methods,
    "owner": owner_methods,
    "driver": driver_methods,
    "decoder": decoder_methods,
    "head": head_methods,
}


def reduce_patched(self: Any, protocol: Any) -> Any:
    """Copy and pickle by the original class: the subclass has no importable name."""
    cls: Any = next(cls for cls in type(self).__mro__ if "_algm_original" in vars(cls))
    _, _, *state = super(cls, self).__reduce_ex__(protocol)
    return new_patched, (cls._algm_original, cls._algm_role), *state


def new_patched(original: Any, role: str) -> Any:
    cls = patched_class(original, role)
    return cls.__new__(cls)


def patch_of(module: nn.Module) -> Patch | None:
    return module.__dict__.get("_algm")
