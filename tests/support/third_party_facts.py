"""Patch the model of one row of the table of public projects, and tell what comes of it."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import algm_patch
from algm_patch import apply_algm, remove_algm
from algm_patch.patching.forward_pass import ForwardPass
from algm_patch.patching.naming import full_name
from algm_patch.trunks import Trunks
from tests.support.contract import SETTINGS, permute_in_place_of_clap, trace
from tests.support.models_mmseg import with_random_weights
from tests.support.third_party import import_from
from tests.support.third_party_rows import Built, Row
from tests.support.third_party_segmentation import EncoderDecoder


def try_row(row: Row, folder: Path) -> dict[str, str]:
    """Return what came of one model, as cells of the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    import_from(*(folder / name for name in row.folders), needed=folder / ".deps")
    os.chdir(folder / row.folders[0])  # some read files of their own from there
    os.environ["ALGM_THIRD_PARTY"] = str(folder)  # for models that tests build too
    try:
        model, forward = row.build()
    except Exception as error:
        traceback.print_exc()
        return {"outcome": f"could not be built: {told(error)}"}
    cells = {"class": " + ".join(map(full_name, parts_of(model)))}
    with_random_weights(model)
    try:
        apply_algm(model, **SETTINGS, **row.settings)
    except Exception as error:
        traceback.print_exc()
        return cells | {"outcome": f"refused: {told(error)}"}
    remove_algm(model)
    try:
        return cells | facts((model, forward), row.settings)
    except Exception as error:
        traceback.print_exc()
        where = "refused at the first pass" if ours(error) else "patched, then"
        return cells | {"outcome": f"{where}: {told(error)}"}


@torch.no_grad()
def facts(built: Built, settings: dict[str, Any]) -> dict[str, str]:
    """Return the facts of a model that takes the patch."""
    model, forward = built
    expected, before = list(tensors(forward())), trace(model)
    if not equal(forward, expected):
        raise RuntimeError("the unpatched model gives something else each time")
    if not all(each.isfinite().all() for each in expected):
        raise RuntimeError("the unpatched model gives numbers that are not finite")
    apply_algm(model, **SETTINGS, **settings)
    merged = list(tensors(forward()))
    handles = handles_of(model)
    tokens = {name: handle.tokens_per_layer for name, handle in handles.items()}
    between = "; ".join(between_blocks(handle.last_pass) for handle in handles.values())
    apply_algm(model, **{**SETTINGS, **settings, "tau": 1.05, "gbm_layers": []})
    nothing_merged = equal(forward, expected)
    with pytest.MonkeyPatch.context() as patch:
        permute_in_place_of_clap(patch)
        apply_algm(model, **{**SETTINGS, **settings, "gbm_layers": []})
        shuffled = list(tensors(forward()))
    remove_algm(model)
    return {
        "outcome": "patched" if any(map(merges, tokens.values())) else "patched, but nothing merges",
        "tokens after each layer": "; ".join(f"{name} {shorter(each)}".strip() for name, each in tokens.items()),
        "between blocks": between,
        "full grid outside": yes([each.shape for each in merged] == [each.shape for each in expected]),
        "merging nothing": "bitwise" if nothing_merged else "DIFFERS",
        "shuffled tokens": f"{difference(shuffled, expected):.0e}",
        "removed": "bitwise" if trace(model) == before and equal(forward, expected) else "DIFFERS",
    }


def parts_of(model: nn.Module) -> list[nn.Module]:
    """Return the model, or the backbone and head that a row has put together."""
    return list(model.children()) if isinstance(model, EncoderDecoder) else [model]


def handles_of(model: Any) -> dict[str, Any]:
    """Return the handles of the ViTs in a model by name; of the only one, under no name."""
    return dict(model.algm) if isinstance(model.algm, Trunks) else {"": model.algm}


def between_blocks(past: ForwardPass) -> str:
    """Return what blocks leave for each other, and how often the full grid was read there."""
    if past.taps is not None:
        return "merged"
    blocks = past.blocks.values()
    if not any(block.handed for block in blocks):
        return "full grid"
    read = sum(block.before is not None and not block.handed for block in blocks)
    return f"merged, read {read} times" if read else "merged"


def merges(tokens: list[int]) -> bool:
    """Return whether there are fewer tokens in the end."""
    return len(set(tokens)) > 1


def shorter(tokens: list[int]) -> str:
    """Return token counts in words: "31 12x3 8"."""
    runs: list[list[int]] = []
    for count in tokens:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(str(count) if times == 1 else f"{count}x{times}" for count, times in runs)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating point tensors in whatever a model returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, dict):
        for each in output.values():
            yield from tensors(each)
    elif isinstance(output, (list, tuple)):
        for each in output:
            yield from tensors(each)
    elif hasattr(output, "__dict__"):
        yield from tensors(vars(output))


def equal(forward: Callable[[], Any], expected: list[Tensor]) -> bool:
    """Return whether a model gives the very same numbers."""
    found = list(tensors(forward()))
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the spread of the tensor that it is in; or to its one number."""
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if other.numel()]
    return max(float((one - other).abs().max() / scale(other)) for one, other in pairs)


def scale(x: Tensor) -> float:
    """Return the standard deviation of a tensor; if it is all but constant, its largest absolute value."""
    spread, largest = float(x.std(correction=0)), float(x.abs().max())
    return spread if spread > 1e-6 * largest else max(largest, 1e-12)


def ours(error: BaseException) -> bool:
    """Return whether an error is one that the library raises in words, and not one that happened somewhere."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(algm_patch.__file__).parent) and isinstance(
        error, (RuntimeError, ValueError)
    )


def told(error: BaseException) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".replace("|", "/")


def yes(fact: bool) -> str:
    """Return a fact as a cell."""
    return "yes" if fact else "NO"
