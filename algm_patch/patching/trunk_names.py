"""Tell the ViTs of a model apart by name, and choose those that a caller names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from .find_projection import is_below
from .naming import class_name, names

ALL = "all"


def names_of(owners: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each sequence of blocks by the name of its ViT.

    That is the path of the module which owns the sequence and the patch embedding, or, if this is the whole model, or
    holds several of the sequences, the path of the sequence.

    Args:
        owners: the path of the owner by the path of the sequence.
    """
    return {owner if owner and is_alone(owners, path) else path: path for path, owner in owners.items()}


def is_alone(owners: Mapping[str, str], path: str) -> bool:
    """Return whether the owner of the sequence of blocks at a path holds no other; see `names_of`."""
    return not any(is_below(other, owners[path]) for other in owners if other != path)


def choose(model: nn.Module, names: Mapping[str, str], trunks: str | Iterable[str]) -> dict[str, str]:
    """Return of these names, with paths of sequences, those that a caller chose.

    Args:
        trunks: paths of modules that are one of the ViTs, its sequence of blocks, or hold just one; or "all".

    Raises:
        ValueError, TypeError: if one of them is none of these.
    """
    if trunks == ALL:
        return dict(names)
    wanted = [trunks] if isinstance(trunks, str) else list(trunks)
    if not wanted:
        raise ValueError(f"trunks names no ViT. {what_there_is(model, names)}")
    return {name: names[name] for name in dict.fromkeys(one_in(model, names, path) for path in wanted)}


def as_paths(trunks: Iterable[str]) -> list[str]:
    """Return paths of trunks as a list, or raise TypeError if they are none."""
    paths: list[Any] = list(trunks) if isinstance(trunks, Iterable) else [trunks]
    for path in paths:
        if not isinstance(path, str):
            raise TypeError(f"trunks are paths of modules, such as 'encoder'; got {path!r:.80}")
    return paths


def one_in(model: nn.Module, names: Mapping[str, str], path: str) -> str:
    """Return the name of the one ViT in the module of a path."""
    if path in names:
        return path
    try:
        held = set(model.get_submodule(path).modules())
    except AttributeError:
        raise ValueError(
            f"trunks={path!r}: {class_name(model)} has no such module. {what_there_is(model, names)}"
        ) from None
    found = [name for name, sequence in names.items() if model.get_submodule(sequence) in held]
    if len(found) != 1:
        raise ValueError(f"trunks={path!r} holds {len(found) or 'no'} ViTs. {what_there_is(model, names)}")
    return found[0]


def what_there_is(model: nn.Module, names: Mapping[str, str]) -> str:
    """Return a sentence that names the ViTs of a model, with their classes and sizes."""
    described = [describe(model, name, path) for name, path in names.items()]
    return f"{class_name(model)} holds {len(names)} ViT{'s' if len(names) > 1 else ''}: {', '.join(described)}"


def how_to_choose(sequences: Mapping[str, str], owners: Mapping[str, str]) -> str:
    """Return how to name the ViTs of a model that are to be patched."""
    counts = Counter(owners.values())
    feeds = [path for path, owner in owners.items() if counts[owner] > 1]
    remedy = f"Name those to patch, as in trunks={[next(iter(sequences))]}"
    if not feeds:
        return f"{remedy}, or trunks='all'"
    return (
        f"One patch embedding feeds several sequences of blocks, {names(feeds)}, of which one can be patched. {remedy}"
        "; or, if they are chunks of one, build it with one (DINOv2: block_chunks=0)"
    )


def describe(model: nn.Module, name: str, path: str) -> str:
    """Return the name of a ViT, its class, and its depth and width."""
    blocks = list(model.get_submodule(path).children())
    sizes = Counter(size for parameter in blocks[0].parameters() for size in parameter.shape if size > 1)
    width = f" of width {sizes.most_common(1)[0][0]}" if sizes else ""  # the size that most of its weights have
    module = model.get_submodule(path if name == path else name)
    kind = class_name(blocks[0] if name == path else module)
    return f"{name!r} ({kind}, {len(blocks)} blocks{width})"


def modules_around(model: nn.Module, trunk: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that hold a trunk, from the whole model to the trunk itself."""
    path = next(path for path, part in model.named_modules() if part is trunk)
    yield model
    for name in filter(None, path.split(".")):
        model = model.get_submodule(name)
        yield model
