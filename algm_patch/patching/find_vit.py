"""Find the plain ViTs in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from ..adapters.base import Adapter
from ..adapters.instance_forward import is_wrapped
from ..adapters.libraries import why_too_old
from ..adapters.refused import SCRIPTED
from ..adapters.registry import (
    adapter_of,
    head_of,
    is_scripted,
    likely_adapter,
    readers_of,
    refusal_of,
    registered_adapter,
)
from ..adapters.unpatched import unpatched
from .find_projection import Place, places_of, takes_patches
from .naming import as_code, check_model, class_name, names
from .trunk_names import as_paths, choose, how_to_choose, is_alone, names_of, what_there_is
from .why_none import SEQUENCES, why_none, why_none_of, why_unknown


@dataclass(frozen=True)
class Vit:
    """Hold the parts of a ViT that are patched.

    Attributes:
        path: of the sequence of blocks, from the trunk: the module that owns it and the patch projection.
        projection: which tells the grid of patches.
        grid_reader: the adapter that reads it off the projection's output.
        embedding: the module in the trunk around a linear projection, which cuts the image into patches; None: there
            is none.
        cuts: whether the trunk cuts the image into patches itself, for a linear projection.
        drivers: modules between the trunk and the sequence with a method that runs the blocks.
        blocks, adapters: in order, each block with its adapter.
        alone: whether the trunk holds no other sequence of blocks.
        driven: whether the trunk's methods, if they are known, run these blocks: it owns no others.
    """

    path: str
    projection: nn.Module
    grid_reader: type[Adapter]
    embedding: nn.Module | None
    cuts: bool
    drivers: list[nn.Module]
    blocks: list[nn.Module]
    adapters: list[type[Adapter]]
    alone: bool
    driven: bool

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All but the trunk."""
        around = () if self.embedding is None else (self.embedding,)
        return (self.projection, *around, *self.drivers, *self.blocks)


def find_vit(model: nn.Module) -> tuple[nn.Module, Vit]:
    """Return the one trunk in ``model`` and its parts; raise as `find_vits` does."""
    (found,) = find_vits(model).values()
    return found


def find_vits(model: nn.Module, trunks: str | Iterable[str] | None = None) -> dict[str, tuple[nn.Module, Vit]]:
    """Return by name the trunks in ``model`` that are to be patched, with their parts.

    Args:
        trunks: of a model with several: their paths, or "all". Default: the one there is, or those that are patched.

    Raises:
        TypeError: if ``model`` is no module.
        ValueError: if there is no ViT, more than one and none named, or one that cannot be patched; naming what was
            found.
    """
    check_model(model)
    trunks = trunks if trunks is None or isinstance(trunks, str) else as_paths(trunks)
    places, others = places_in(model, trunks)
    owners = {path: place.owner for path, place in places.items()}
    sequences = names_of(owners)
    patched = {
        name: path for name, path in sequences.items() if any(map(is_patched, model.get_submodule(path).children()))
    }
    if trunks is not None:
        sequences = choose(model, sequences, trunks)
    elif patched:
        sequences = patched
    elif len(sequences) > 1:
        raise ValueError(f"{what_there_is(model, sequences)}. {how_to_choose(sequences, owners)}")
    counts = Counter(place.owner for place in (*places.values(), *others))
    return {
        name: vit_at(model, path, places[path], is_alone(owners, path), counts[owners[path]] == 1)
        for name, path in sequences.items()
    }


def places_in(model: nn.Module, trunks: str | list[str] | None) -> tuple[dict[str, Place], list[Place]]:
    """Return the place of the patch projection of each sequence of blocks, by path, and those of what is no ViT.

    Those whose blocks are registered come before all others, unless the caller names some, or some are patched.

    Raises:
        ValueError: if there is none.
    """
    found = sequences_with(registered_adapter, model)
    places, others = places_of(model, found), []
    if not places or trunks is not None or any(map(is_patched, model.modules())):
        found = sequences_with(likely_adapter, model)
        named = [trunks] if isinstance(trunks, str) else trunks or []
        patched = [path for path in found if any(map(is_patched, model.get_submodule(path).children()))]
        places = places_of(model, found, [*named, *patched])
        if trunks is None:
            proved = {path: place for path, place in places.items() if are_proved(model, path)}
            if not proved and (reason := why_none_of(model, places)):
                raise ValueError(f"{class_name(model)} cannot be patched: {reason}")
            if proved:
                places, others = proved, [place for path, place in places.items() if path not in proved]
    if not places:
        raise ValueError(f"{class_name(model)} cannot be patched: {why_none(model, found)}")
    return places, others


def is_patched(module: nn.Module) -> bool:
    return unpatched(type(module)) is not type(module)


def vit_at(model: nn.Module, path: str, place: Place, alone: bool, driven: bool) -> tuple[nn.Module, Vit]:
    """Return the trunk that owns a sequence of blocks, and its parts.

    Args:
        path: of the sequence.
        place: of its patch projection.
        alone, driven: as in `Vit`.

    Raises:
        ValueError: if it cannot be patched.
    """
    title = class_name(model)
    named = {f"{path}.{name}": block for name, block in model.get_submodule(path)._modules.items() if block is not None}
    blocks, adapters = list(named.values()), [check_block(name, block) for name, block in named.items()]
    if len(set(blocks)) < len(blocks):
        raise ValueError(f"{title} cannot be patched: {as_code(path)} runs one block more than once")
    trunk = model.get_submodule(place.owner)
    projection = the_projection(trunk, place, title)
    path = path.removeprefix(place.owner).lstrip(".")
    above = [trunk.get_submodule(parent) for parent in accumulate(path.split(".")[:-1], "{}.{}".format)]
    drivers = [module for module in above if driven and readers_of(type(module))]
    reader = adapters[0] if place.listed or not adapters[0].projection else Adapter
    linear, (around, _, _) = isinstance(projection, nn.Linear), place.projections[0].rpartition(".")
    embedding = trunk.get_submodule(around) if linear and around else None
    cuts = linear and not around
    return trunk, Vit(path, projection, reader, embedding, cuts, drivers, blocks, adapters, alone, driven)


def find_decoders(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return every decoder in ``model`` that can run on merged tokens, and the module in it whose output is unmerged.

    Raises:
        ValueError: if there is none, or the forward of one is hidden.
    """
    found = {}
    for path, module in model.named_modules():
        head = head_of(module)
        if head is not None:
            check_forward(path, module)
            found[module] = head
    if not found:
        raise ValueError(
            f"unmerge_at='after_head': in {class_name(model)} there is no decoder that is known to run on merged "
            "tokens. Pass the whole model, decoder included; or keep unmerge_at='before_head' and, in a head of your "
            "own that runs on model.algm.token_map.merge(x), give its output to model.algm.unmerge"
        )
    return found


def sequences_with(lookup: Callable[[nn.Module], type[Adapter] | None], model: nn.Module) -> dict[str, type[Adapter]]:
    """Return by path every sequence in which at least one block has an adapter, and that adapter."""
    found = {}
    for path, module in model.named_modules():
        adapters = [lookup(child) for child in module.children()] if isinstance(module, SEQUENCES) else []
        adapter = next(filter(None, adapters), None)
        if adapter is not None:
            found[path] = adapter
    return found


def are_proved(model: nn.Module, path: str) -> bool:
    """Return whether all blocks of the sequence at this path have an adapter, registered or proved."""
    return all(map(adapter_of, model.get_submodule(path).children()))


def check_block(path: str, block: nn.Module) -> type[Adapter]:
    adapter = adapter_of(block)
    if adapter is None or refusal_of(block) is not None:
        raise ValueError(f"{as_code(path)} cannot be patched: {why_unknown(block)}")
    too_old = why_too_old(unpatched(type(block)).__module__.partition(".")[0])
    if too_old is not None:
        raise ValueError(f"{as_code(path)} cannot be patched: {too_old}")
    check_forward(path, block)
    return adapter


def the_projection(trunk: nn.Module, place: Place, title: str) -> nn.Module:
    """Return the patch projection of a trunk.

    Raises:
        ValueError: if it is not known which of several it is, or it cannot be patched.
    """
    paths = [f"{place.owner}.{projection}" for projection in place.projections]
    if len(paths) > 1:
        raise ValueError(
            f"{title} cannot be patched: {names(paths)} all make tokens of an image, and ALGM does not know which one "
            "leaves the grid of patches. Register an Adapter with its path as projection: see algm_patch.register"
        )
    projection = trunk.get_submodule(place.projections[0])
    check_projection(paths[0], projection)
    return projection


def check_projection(path: str, projection: nn.Module) -> None:
    cuts = isinstance(projection, nn.Linear) and takes_patches(projection)
    if isinstance(projection, (nn.Linear, nn.Conv1d, nn.Conv3d)) and not cuts:
        raise ValueError(
            f"{as_code(path)} cannot be patched: the patch projection is a {class_name(projection)}, which leaves no "
            "grid [B, D, H, W]"
        )
    check_forward(path, projection)


def check_forward(path: str, module: nn.Module) -> None:
    if is_scripted(module):
        raise ValueError(f"{as_code(path)} cannot be patched: {SCRIPTED}")
    if is_wrapped(module):
        raise ValueError(
            f"{as_code(path)} cannot be patched: this {class_name(module)} has a forward set on the instance, which "
            "hides that of its class. Undo what set it (an offloading hook, another patch) first"
        )
