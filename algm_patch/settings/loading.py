"""Read settings back from files."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .record import RECORDS, Calibrated, Record
from .renamed import SETTINGS, WITHOUT_EFFECT
from .trial import SEARCHED, Rival, Trial

# The entry of a file that holds settings.
KEY = "algm_patch"
# What files mean that were saved before there were these settings: they keep giving the results that they gave.
AS_BEFORE: dict[str, Any] = {"size_aware": False, "matching": "bipartite", "restore": False}


def values_in(path: str | os.PathLike[str], settings: type) -> dict[str, Any]:
    """Return the settings in a JSON file, or in the metadata of a safetensors file, by name.

    Args:
        settings: the dataclass whose fields they are.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, or holds no settings, or one that this version does not know.
    """
    path = Path(path)
    saved = metadata_of(path) if path.suffix == ".safetensors" else content_of(path)
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds no settings: no entry {KEY!r}. Give a file that Settings.save wrote, or a safetensors file "
            "saved with metadata=settings.metadata()"
        )
    values = checked(modern(saved), settings, path)
    added = {name: value for name, value in AS_BEFORE.items() if name not in values}
    if isinstance(record := values.get("record"), dict):
        others = record.get("others", not_searched(values, settings, added))
        record["others"] = [*others, *map(list, added.items())] if are_pairs(others) else others
    values.update(added)
    if values.get("record") is not None:
        values["record"] = instance(values["record"], Record, path)
    if values.get("calibrated") is not None:
        values["calibrated"] = instance(values["calibrated"], Calibrated, path)
    return values


def not_searched(values: dict[str, Any], settings: type, added: Collection[str]) -> list[list[Any]]:
    """Return names and values of the settings that ``tune`` does not search, for records of a time without them.

    Args:
        added: settings that there were not, either.
    """
    all_values = {field.name: values.get(field.name, field.default) for field in fields(settings)}
    return [[name, value] for name, value in all_values.items() if name not in (*SEARCHED, *RECORDS, *added)]


def metadata_of(path: Path) -> Any:
    """Return the entry of a safetensors file's metadata; None if it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        return None if text is None else json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}). Save or download it again") from None


def content_of(path: Path) -> Any:
    """Return the entry of a JSON file; None if it has none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Give a file that Settings.save wrote") from None
    return content.get(KEY) if isinstance(content, dict) else None


def modern(saved: dict[str, Any]) -> dict[str, Any]:
    """Return settings that version 0.1 saved under the names of this one."""
    values = {SETTINGS.get(name, name): value for name, value in saved.items() if name != WITHOUT_EFFECT}
    if isinstance(values.get("calibrated"), list):
        values["calibrated"] = the_one_that_holds(values["calibrated"], values)
    if isinstance(record := values.get("record"), dict) and are_pairs(record.get("others")):
        others = ((SETTINGS.get(name, name), value) for name, value in record["others"] if name != WITHOUT_EFFECT)
        values["record"] = {**record, "others": [list(other) for other in others]}
    if isinstance(record := values.get("record"), dict) and "judge" in record:
        values["record"] = by_name(record)
    return values


def by_name(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of a time when one judge gave one number: what is kept by name, and no image held back."""
    record = dict(record)
    judge = record.pop("judge")
    name = "pixels" if judge == "agreement" else judge
    for key in {"keep", "kept"} & record.keys():
        record[key] = {name: record[key]}
    if isinstance(trials := record.get("trials"), list):
        trials = [
            {**trial, "kept": {name: trial.get("kept")}} if isinstance(trial, dict) else trial for trial in trials
        ]
        record["trials"] = trials
    return {"held_back": 0, "low": {}, **record}


def are_pairs(saved: Any) -> bool:
    """Return whether this is a list of names and values."""
    pairs = saved if isinstance(saved, list) else [None]
    return all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs)


def the_one_that_holds(calibrated: list[Any], values: dict[str, Any]) -> Any:
    """Return the one of several calibrated thresholds that was found with these settings, or the first."""
    for each in calibrated:
        if isinstance(each, dict):
            found_with = {str(SETTINGS.get(name, name)): value for name, value in each.items() if name != "value"}
            if all(values.get(name) == value for name, value in found_with.items()):
                return each
    return next(iter(calibrated), None)


def instance(saved: Any, cls: Any, path: Path) -> Any:
    """Return what was saved of a dataclass as its instance."""
    values = checked(saved, cls, path)
    for name, one in (("trials", Trial), ("rivals", Rival)) if cls is Record else ():
        if not isinstance(several := values.get(name, []), list):
            raise ValueError(f"{path} is damaged: where a list of {name} should be there is {several!r:.40}")
        values[name] = tuple(instance(each, one, path) for each in several)
    try:
        return cls(**{name: immutable(value) for name, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def immutable(value: Any) -> Any:
    """Return lists as tuples, which JSON does not have."""
    return tuple(map(immutable, value)) if isinstance(value, list) else value


def checked(saved: Any, cls: Any, path: Path) -> dict[str, Any]:
    """Return a copy of ``saved`` if its names are fields of a dataclass, and all fields without a default are there."""
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is damaged: where a {cls.__name__} should be there is {saved!r:.40}")
    saved = {SETTINGS.get(name, name): value for name, value in saved.items()}
    names = {each.name: each.default is each.default_factory is MISSING for each in fields(cls)}
    if extra := sorted(saved.keys() - names):
        raise ValueError(f"{path} was saved by another version: this one does not know {', '.join(map(repr, extra))}")
    if missing := sorted(name for name, needed in names.items() if needed and name not in saved):
        raise ValueError(f"{path} was saved by another version: it says nothing of {', '.join(map(repr, missing))}")
    return saved
