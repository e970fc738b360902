"""Settings read back from files."""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .measured import Calibrated, Measured, Trial
from .settings import KEY, Settings


def load_settings(path: str | os.PathLike[str]) -> Settings:
    """Read settings from a JSON file that :meth:`Settings.save` wrote, or a safetensors file with their metadata.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is damaged, or holds no settings, or one that this version does not know or take.
    """
    path = Path(path)
    saved = metadata_of(path) if path.suffix == ".safetensors" else content_of(path)
    if not isinstance(saved, dict):
        raise ValueError(
            f"{path} holds no settings: no entry {KEY!r}. Give a file that Settings.save wrote, or a safetensors file "
            "saved with metadata=settings.metadata()"
        )
    values = known(saved, Settings, path)
    if values.get("measured") is not None:
        values["measured"] = record(values["measured"], Measured, path)
    values["calibrated"] = records(values.get("calibrated", []), Calibrated, path)
    try:
        return Settings(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def metadata_of(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        return None if text is None else json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or no safetensors file ({error}). Save or download it again") from None


def content_of(path: Path) -> Any:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Give a file that Settings.save wrote") from None
    return content.get(KEY) if isinstance(content, dict) else None


def record(saved: Any, cls: Any, path: Path) -> Any:
    """Return what was saved of a dataclass as its instance."""
    values = known(saved, cls, path)
    if cls is Measured:
        values["trials"] = records(values["trials"], Trial, path)
    try:
        return cls(**{name: immutable(value) for name, value in values.items()})
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def records(saved: Any, cls: Any, path: Path) -> tuple[Any, ...]:
    if not isinstance(saved, list):
        raise ValueError(f"{path} is damaged: where a list of {cls.__name__} should be there is {saved!r:.40}")
    return tuple(record(one, cls, path) for one in saved)


def immutable(value: Any) -> Any:
    """Return lists as tuples, which JSON does not have."""
    return tuple(map(immutable, value)) if isinstance(value, list) else value


def known(saved: Any, cls: Any, path: Path) -> dict[str, Any]:
    """Return a copy of ``saved`` if it has no names but the fields of a dataclass, and all without a default."""
    if not isinstance(saved, dict):
        raise ValueError(f"{path} is damaged: where a {cls.__name__} should be there is {saved!r:.40}")
    names = {field.name: field.default is MISSING for field in fields(cls)}
    if extra := sorted(saved.keys() - names):
        raise ValueError(f"{path} was saved by another version: this one does not know {', '.join(map(repr, extra))}")
    if missing := sorted(name for name, needed in names.items() if needed and name not in saved):
        raise ValueError(f"{path} was saved by another version: it says nothing of {', '.join(map(repr, missing))}")
    return dict(saved)
