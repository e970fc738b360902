"""Make up the rows of the table of public projects: see tests/third_party.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

# A model, and a function without arguments that runs it and returns everything that somebody reads of it.
Built = tuple[nn.Module, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """A model class of a public project.

    Attributes:
        project: the folder of its checkout.
        folders: of checkouts, or in them, that the project is imported from.
        build: builds the model, small and with random weights, and a function that runs it.
        settings: what `apply_algm` is given beside the settings of the contract, such as ``trunks``.
    """

    project: str
    folders: tuple[str, ...]
    build: Callable[[], Built]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the function that builds the model."""
        return self.build.__name__


ROWS: list[Row] = []


def row(project: str, *folders: str, **settings: Any) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Decorator: the function builds the model of one row.

    Args:
        project: the folder of the checkout, under the name of its repository.
        folders: that the project is imported from. Default: the checkout.
        settings: of `apply_algm`, for this model alone.
    """

    def add(build: Callable[[], Built]) -> Callable[[], Built]:
        ROWS.append(Row(project, folders or (project,), build, settings))
        return build

    return add


def load(name: str) -> Any:
    """Return a module of a checkout, such as ``load("vggt.models.aggregator")``."""
    return import_module(name)


def image(height: int, width: int, batch: int = 2) -> Tensor:
    """Return images [B, 3, H, W]: smooth, so that neighbours are alike, with some texture."""
    generator = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(
        torch.randn(batch, 3, 3, 3, generator=generator), (height, width), mode="bilinear"
    )
    return smooth + 0.1 * torch.randn(batch, 3, height, width, generator=generator)


# -- packages that cannot be installed, or need not be


def bare_packages(*names: str) -> None:
    """Make packages of this folder importable without running their ``__init__``, which import what a ViT needs not."""
    for name in names:
        package = ModuleType(name)
        package.__path__ = [str(Path.cwd().joinpath(*name.split(".")))]
        sys.modules[name] = package


@contextmanager
def stubs(**modules: dict[str, Any]) -> Iterator[None]:
    """Put modules with these attributes in the place of others, while a checkout is imported.

    The names of the modules have ``__`` for each point. Only what no forward pass computes with may be replaced:
    registries, loaders of checkpoints, logging.
    """
    before = dict(sys.modules)
    for name, attributes in modules.items():
        stub = ModuleType(name.replace("__", "."))
        stub.__path__ = []
        vars(stub).update(attributes)
        sys.modules[stub.__name__] = stub
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name.replace("__", ".")]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})
