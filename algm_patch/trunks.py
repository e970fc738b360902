"""``model.algm`` of a model with several patched ViTs: a handle for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .handle import NAMES, Algm
from .patching.naming import check_model, class_name
from .patching.parts import patched_trunks
from .patching.runtime import Runtime
from .report import html, text


class Trunks(Mapping[str, Algm]):
    """Show and change the patched ViTs of one model: its handle, ``model.algm``, if there are several.

    A mapping from the path of each ViT to its own handle, an `Algm`: ``model.algm["encoder"].tokens_per_layer``.
    Settings that are set here are set in all of them, or in none if one cannot take them. What they agree in can be
    read here. Printing it shows them all.
    """

    def __init__(self, model_name: str, handles: Mapping[str, Algm]) -> None:
        self.__dict__.update(_model_name=model_name, _handles=dict(handles))

    def __getitem__(self, path: str) -> Algm:
        if path not in self._handles:
            raise KeyError(f"{path!r} is none of the patched ViTs: {self._names}")
        return self._handles[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def update(self, **changes: Any) -> None:
        """Change settings of all ViTs, as `Algm.update` does.

        Raises:
            ValueError, TypeError: as there, naming the ViT; the settings of all stay as they were.
        """
        before = [handle.settings for handle in self.values()]
        for path, handle in self.items():
            try:
                handle.update(**changes)
            except (ValueError, TypeError) as error:
                for changed, settings in zip(self.values(), before, strict=True):
                    changed.runtime.settings = settings
                raise type(error)(f"{path}: {error}") from None

    @contextmanager
    def using(self, **changes: Any) -> Iterator[None]:
        """Run the body of a ``with`` statement under other settings of all ViTs, as `Algm.using` does."""
        with ExitStack() as stack:
            for path, handle in self.items():
                try:
                    stack.enter_context(handle.using(**changes))
                except (ValueError, TypeError) as error:
                    raise type(error)(f"{path}: {error}") from None
            yield

    def __getattr__(self, name: str) -> Any:
        if name in (*NAMES, "settings", "calibrated_tau"):
            values = {path: getattr(handle, name) for path, handle in self.items()}
            first, *others = values.values()
            if all(other == first for other in others):
                return first
            raise AttributeError(f"the ViTs differ in {name}: {values}. Read that of one: {self._example}.{name}")
        if not name.startswith("_") and hasattr(Algm, name):
            raise AttributeError(f"each of the ViTs {self._names} has its own {name}: {self._example}.{name}")
        raise AttributeError(f"model.algm has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in NAMES:
            raise AttributeError(f"model.algm has no setting {name!r}; there are {', '.join(NAMES)}")
        self.update(**{name: value})

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *NAMES]

    @property
    def _names(self) -> str:
        return ", ".join(map(repr, self))

    @property
    def _example(self) -> str:
        return f"model.algm[{next(iter(self))!r}]"

    def __repr__(self) -> str:
        return text.reports(self._model_name, {path: repr(handle) for path, handle in self.items()})

    def _repr_html_(self) -> str:
        """Return the cards of all ViTs, for notebooks."""
        return html.reports({path: handle._repr_html_() for path, handle in self.items()})


def hand_over(runtime: Runtime, owners: Set[nn.Module], before: Runtime | None) -> None:
    """Show a new runtime as ``algm`` of its owners, in the place of the one of before, whose handle it takes."""
    if before is not None:
        owners = {*owners, *before.owners}
    handles = handles_in(owners)
    handle = next((known for known in handles if known.runtime is before), Algm(runtime))
    handle.runtime = runtime
    show(owners, {*handles, handle})


def show(owners: Iterable[nn.Module], handles: Set[Algm]) -> None:
    """Set ``algm`` of modules to the handle of the one ViT that is patched in them, or those of several, or nothing."""
    known = {handle.runtime: handle for handle in handles}
    for owner in owners:
        shown = {name: known[runtime] for name, runtime in patched_trunks(owner).items() if runtime in known}
        owner.__dict__.pop("algm", None)
        if shown:
            owner.algm = next(iter(shown.values())) if len(shown) == 1 else Trunks(class_name(owner), shown)  # type: ignore[assignment]
        for handle in shown.values():
            handle.runtime.owners.add(owner)


def handles_in(models: Iterable[nn.Module]) -> set[Algm]:
    """Return the handles of all patched ViTs in models."""
    shown = [module.__dict__.get("algm") for model in models for module in model.modules()]
    several = [handle for each in shown if isinstance(each, Trunks) for handle in each.values()]
    return {*several, *(each for each in shown if isinstance(each, Algm))}


def handle_of(model: nn.Module) -> Algm:
    """Return the handle of a patched model, or of the one patched ViT in it.

    Raises:
        ValueError: if there is none, or more than one.
        TypeError: if ``model`` is no module.
    """
    check_model(model)
    handles = handles_in([model])
    if not handles:
        raise ValueError(f"{class_name(model)} is not patched. Call apply_algm on it first")
    if len(handles) > 1:
        which = ", ".join(map(repr, patched_trunks(model)))
        raise ValueError(
            f"{class_name(model)} holds {len(handles)} patched ViTs ({which}), and this takes one. Pass the module of "
            "one; or, to run the whole model, patch one at a time: remove_algm(model), then apply_algm(model, "
            "trunks=[...])"
        )
    return handles.pop()
