"""Weights of timm's models from files, and a summary of what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

SHOWN = 2  # names that an error gives of each kind


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file of weights into a model of timm.

    Raises:
        ValueError: if it is no such file, or its weights are of another model.
    """
    from timm.models import load_checkpoint, load_state_dict

    try:
        if path.suffix.lower() in (".npz", ".npy"):
            load_checkpoint(model, str(path))
            return
        weights = load_state_dict(str(path))
    except Exception as error:  # each file format has errors of its own
        raise ValueError(f"it cannot be read as weights ({type(error).__name__}: {first_line(error)})") from None
    if problems := differences(weights, model.state_dict()):
        raise ValueError("; ".join(problems))
    model.load_state_dict(weights)


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Return in words what weights have too little, too much, or in another shape."""
    shapes = [
        f"{name} {list(found[name].shape)}, not {list(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    kinds = {
        f"of {len(wanted)} it lacks": [name for name in wanted if name not in found],
        "it has others,": [name for name in found if name not in wanted],
        "it has in another shape": shapes,
    }
    return [f"{words} {summary(names)}" for words, names in kinds.items() if names]


def summary(names: Sequence[str]) -> str:
    """Return how many names there are, and the first of them."""
    more = ", ..." * (len(names) > SHOWN)
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
