"""Find the patch projection of each sequence of blocks: where its adapter says, or by what it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import isqrt

from torch import nn

from ..adapters.base import Adapter
from ..adapters.cost import layers_in

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Place:
    """Hold where the patch projection of a sequence of blocks is.

    Attributes:
        owner: path of the nearest module above the blocks that has one.
        projections: its paths from there: one; or several, of which it is not known which one tells the grid.
        listed: whether an adapter says its path.
    """

    owner: str
    projections: tuple[str, ...]
    listed: bool


def places_of(
    model: nn.Module, sequences: Mapping[str, type[Adapter]], named: Collection[str] = ()
) -> dict[str, Place]:
    """Return the place of the patch projection of each sequence of blocks, by path; some may have none.

    One that is found by what it is, and not where an adapter says, belongs to no sequence around or beside a whole
    ViT, such as a text tower or a decoder, unless the caller names it: blocks that run on what a ViT leaves.

    Args:
        sequences: by path, each with the adapter of its blocks.
        named: paths of those that the caller names.
    """
    blocks = {model.get_submodule(path) for path in sequences}
    listed, found, linear = {}, {}, set()
    for path, adapter in sequences.items():
        for owner in above(path):
            if (projection := projection_in(model.get_submodule(owner), adapter)) is not None:
                listed[path] = Place(owner, (projection,), listed=True)
                break
    widths = {width_of(model.get_submodule(path)) for path in sequences.keys() - listed.keys()}
    for path in sequences.keys() - listed.keys():
        for owner in above(path):
            module = model.get_submodule(owner)
            if not (projections := patch_layers(module, blocks, widths)):
                projections = linear_layers(module, blocks, widths)
                linear |= {path} if projections else set()
            if projections:
                found[path] = Place(owner, projections, listed=False)
            if projections or embeds_words(module, blocks):
                break
    owners = {place.owner for place in (*listed.values(), *found.values())}
    doubtful = {owner for owner in owners if any(is_below(other, owner) for other in owners)}
    if listed or found.keys() - linear:  # a linear layer beside a patch convolution is a decoder's own
        doubtful |= {found[path].owner for path in linear}
    kept = listed | {path: place for path, place in found.items() if path in named or place.owner not in doubtful}
    return {path: kept[path] for path in sequences if path in kept}


def above(path: str) -> Iterator[str]:
    """Yield the paths of the modules above one, from the nearest to the whole model."""
    while path:
        path = path.rpartition(".")[0]
        yield path


def is_below(path: str, other: str) -> bool:
    """Return whether the module at a path is inside that at another."""
    return path != other and (not other or path.startswith(f"{other}."))


def projection_in(module: nn.Module, adapter: type[Adapter]) -> str | None:
    """Return the path of the patch projection below a module, if it has one where the adapter says."""
    listed = adapter.projection
    for path in (listed,) if isinstance(listed, str) else listed:
        try:
            found = module.get_submodule(path)
        except AttributeError:
            continue
        if adapter.is_projection(found):
            return path
    return None


def width_of(sequence: nn.Module) -> int:
    """Return the width of the tokens that blocks take: of their first layer."""
    layers = layers_in(sequence)
    return layers[0].inputs if layers else 0


def patch_layers(module: nn.Module, blocks: set[nn.Module], widths: set[int]) -> tuple[str, ...]:
    """Return the paths of the layers below a module that make tokens of these widths of an image.

    These are convolutions of patches; if there are none, those with overlaps; else those that end a stem with a stride.
    A stem, which is a child of the module, must leave these widths; of several layers in it the last tells the grid.

    Args:
        blocks: sequences of blocks, in which none is looked for.
    """
    found: dict[str, dict[str, str]] = {"patches": {}, "overlaps": {}, "stem": {}}
    strided: set[str] = set()
    leaves: dict[str, int] = {}
    for path, layer in outside(module, blocks):
        if not isinstance(layer, CONVOLUTIONS) or layer.groups > 1:
            continue
        stem = path.partition(".")[0]
        leaves[stem] = layer.out_channels
        if max(layer.stride) > 1:
            strided.add(stem)
            kind = "patches" if layer.kernel_size == layer.stride else "overlaps"
            if layer.out_channels in widths and layer.in_channels < layer.out_channels:
                found[kind][stem] = path
        elif layer.out_channels in widths and stem in strided:
            found["stem"][stem] = path
    kinds = [[path for stem, path in paths.items() if leaves[stem] in widths] for paths in found.values()]
    return tuple(next(filter(None, kinds), ()))


def linear_layers(module: nn.Module, blocks: set[nn.Module], widths: set[int]) -> tuple[str, ...]:
    """Return the paths of the layers below a module, called after patches, that make tokens of these widths of such.

    Args:
        blocks: sequences of blocks, in which none is looked for.
    """
    return tuple(
        path
        for path, layer in outside(module, blocks)
        if isinstance(layer, nn.Linear)
        and layer.out_features in widths
        and takes_patches(layer)
        and "patch" in path.lower()
    )


def takes_patches(layer: nn.Linear) -> bool:
    """Return whether the inputs of a linear layer may be a square of pixels of one, three or four channels."""
    inputs = layer.in_features
    return any(isqrt(inputs // channels) ** 2 * channels == inputs > channels for channels in (1, 3, 4))


def embeds_words(module: nn.Module, blocks: set[nn.Module]) -> bool:
    """Return whether a module makes tokens of words: with a table that is not one of positions."""
    return any(isinstance(layer, nn.Embedding) and "pos" not in path.lower() for path, layer in outside(module, blocks))


def outside(module: nn.Module, blocks: set[nn.Module], path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module below one with its path, in order, without those in sequences of blocks."""
    for name, child in module.named_children():
        if child not in blocks:
            yield f"{path}{name}", child
            yield from outside(child, blocks, f"{path}{name}.")
