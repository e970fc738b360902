"""The settings of a patched model, and what is wrong with a wrong one."""

from __future__ import annotations

import difflib
import json
import operator
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

from .files import written_whole
from .measured import Calibrated, Measured
from .thresholds import Share

Tau = float | Literal["auto", "paper"]
GbmTau = float | tuple[float, ...] | Share | Literal["adaptive", "tau"]
Taps = Literal["auto", "all"]
Unmerge = Literal["before_head", "after_head"]
Metric = Literal["token", "key", "query", "value"]
Reduce = Literal["mean", "pick"]
Place = Literal["before_mlp", "after_mlp"]
Batch = Literal["auto", "image", "min"]
Tokens = float | tuple[float | int, ...] | None

# Under which a file holds settings.
KEY = "algm_patch"


@dataclass(frozen=True)
class Settings:
    """See :func:`algm_patch.apply_algm`. Frozen: a forward pass keeps the settings it began with.

    A mapping of its fields, so that ``apply_algm(model, **settings)`` applies them. What was measured stays only with
    the settings that it was measured with: ``Settings(**{**tuned, "tau": 0.9}).measured`` is None.

    Raises:
        ValueError, TypeError: naming the setting, what was given and what is expected.
    """

    clap_layer: int | None = 1
    gbm_layers: tuple[int, ...] = (5,)
    tau: Tau = "auto"
    gbm_tau: GbmTau = "adaptive"
    window: tuple[int, int] = (2, 2)
    proportional_attention: bool = True
    taps: Taps = "auto"
    unmerge: Unmerge = "before_head"
    metric: Metric = "token"
    reduce: Reduce = "mean"
    place: Place = "before_mlp"
    batch: Batch = "auto"
    tokens: Tokens = None
    measured: Measured | None = None
    calibrated: tuple[Calibrated, ...] = ()

    def __new__(cls, *_: Any, **given: Any) -> Settings:
        names = [field.name for field in fields(cls)]
        if unknown := next((name for name in given if name not in names), None):
            raise TypeError(f"there is no setting {no_such(unknown, names)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.clap_layer is not None:
            self._set("clap_layer", check_layer("clap_layer", self.clap_layer))
        layers = check_layers(self.gbm_layers)
        self._set("gbm_layers", tuple(sorted(layers)))
        self._set("tau", check_tau("tau", self.tau, ("auto", "paper")))
        self._set("gbm_tau", check_gbm_tau(self.gbm_tau, layers))
        self._set("window", check_window(self.window))
        if not isinstance(self.proportional_attention, bool):
            raise TypeError(f"proportional_attention is True or False, got {self.proportional_attention!r}")
        if self.taps not in ("auto", "all"):
            raise ValueError(f"taps is 'auto' or 'all', got {self.taps!r}")
        if self.unmerge not in ("before_head", "after_head"):
            raise ValueError(f"unmerge is 'before_head' or 'after_head', got {self.unmerge!r}")
        check_choice("metric", self.metric, get_args(Metric))
        check_choice("reduce", self.reduce, get_args(Reduce))
        check_choice("place", self.place, get_args(Place))
        check_choice("batch", self.batch, get_args(Batch))
        if self.unmerge == "after_head" and self.taps == "all":
            raise ValueError(
                "unmerge='after_head' leaves the last block's tokens merged, taps='all' asks for the full grid after "
                "every block. Give up one of them"
            )
        if self.clap_layer is not None and self.gbm_layers and self.clap_layer > self.gbm_layers[0]:
            raise ValueError(
                f"{self.named('clap_layer')} comes after {self.named('gbm_layers')}: CLAP needs the grid "
                "that global matching dissolves. Put CLAP first, or switch a stage off (clap_layer=None, gbm_layers=[])"
            )
        if self.tokens is not None:
            self._check_tokens(layers)
        if self.gbm_layers and self.gbm_tau == "tau" and self.clap_layer is None and isinstance(self.tau, str):
            raise ValueError(
                f"gbm_tau='tau' takes CLAP's threshold, but clap_layer is None and {self.named('tau')} is computed "
                "there. Give tau as a number, or set gbm_tau"
            )
        check_records("measured", [] if self.measured is None else [self.measured], Measured)
        self._set("calibrated", check_records("calibrated", self.calibrated, Calibrated))
        if self.measured is not None and not self.measured.holds_for(self):
            self._set("measured", None)

    def _check_tokens(self, layers: tuple[int, ...]) -> None:
        thresholds = [name for name in ("tau", "gbm_tau") if self[name] != getattr(Settings, name)]
        if thresholds:
            raise ValueError(
                f"tokens={self.tokens} chooses by rank, {' and '.join(map(self.named, thresholds))} by threshold. "
                f"Give up one of them: tokens=None, or leave out {' and '.join(thresholds)}"
            )
        if isinstance(self.tokens, (list, tuple)) and list(layers) != sorted(layers):
            raise ValueError(
                f"tokens={list(self.tokens)} for gbm_layers={list(layers)}: give the layers in rising order, so that "
                "each merge has its own share or number; or one share for all"
            )
        local = [] if self.clap_layer is None else [("CLAP", 1 / (self.window[0] * self.window[1]))]
        merges = [*local, *(("GBM", 0.5) for _ in self.gbm_layers)]
        self._set("tokens", check_kept(self.tokens, merges))

    def kept(self, merge: int) -> float | int:
        """The setting ``tokens`` for one merge (counted from 0): a share of its patches, or a number."""
        assert self.tokens is not None
        return self.tokens[merge] if isinstance(self.tokens, tuple) else self.tokens

    @property
    def calibrated_tau(self) -> float | None:
        """The threshold of a data set that ``tau`` stands for; None where CLAP takes each image's own, or a number."""
        if self.tokens is None:
            for calibrated in self.calibrated:
                if calibrated.holds_for(self):
                    return calibrated.value
        return None

    def named(self, name: str) -> str:
        """Return ``name=value`` for an error, which says so if the value is the default and nobody gave it."""
        value = self[name]
        shown = list(value) if isinstance(value, tuple) else value
        return f"{name}={shown!r}{' (the default)' if value == getattr(Settings, name) else ''}"

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __str__(self) -> str:
        return repr(self) if self.measured is None else str(self.measured)

    def keys(self) -> list[str]:
        return [field.name for field in fields(self)]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def metadata(self) -> dict[str, str]:
        """For a checkpoint: ``safetensors.torch.save_file(weights, path, metadata=settings.metadata())``."""
        return {KEY: json.dumps(asdict(self))}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all, for :func:`algm_patch.load_settings`."""
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({KEY: asdict(self)}, indent=2) + "\n")


def no_such(name: str, names: Iterable[str]) -> str:
    """Return the end of an error for a name that there is not: the name, the nearest of ``names``, and all of them."""
    names = list(names)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"{name!r}.{f' Did you mean {nearest[0]!r}?' if nearest else ''} Settings: {', '.join(names)}"


def above_all(tau: object) -> bool:
    """Return whether ``tau`` is the documented way to merge nothing: a number above every cosine."""
    return isinstance(tau, float) and tau > 1


def check_layer(name: str, layer: Any) -> int:
    try:
        if isinstance(layer, bool):
            raise TypeError
        number = operator.index(layer)
    except TypeError:
        raise TypeError(f"{name} counts blocks from 1 in whole numbers, got {layer!r}") from None
    if number < 1:
        raise ValueError(f"{name} counts blocks from 1, got {layer!r}")
    return number


def check_layers(layers: Any) -> tuple[int, ...]:
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise TypeError(f"gbm_layers is a list of layers, such as [5], or [] for none; got {layers!r}")
    numbers = tuple(check_layer("gbm_layers", layer) for layer in layers)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"gbm_layers names a layer twice: {list(numbers)}")
    return numbers


def check_tau(name: str, tau: Any, rules: tuple[str, ...]) -> Any:
    if isinstance(tau, str):
        if tau in rules:
            return tau
    elif not isinstance(tau, Real) or isinstance(tau, bool):
        raise TypeError(f"{name} is a number{one_of(rules)}; got {tau!r}")
    elif float(tau) >= -1:  # False for NaN
        return float(tau)
    raise ValueError(
        f"{name} is a cosine in [-1, 1], or above 1 to merge nothing{',' * bool(rules)}{one_of(rules)}; got {tau!r}"
    )


def one_of(rules: tuple[str, ...]) -> str:
    return f" or one of {', '.join(map(repr, rules))}" if rules else ""


def check_gbm_tau(tau: Any, layers: tuple[int, ...]) -> Any:
    if isinstance(tau, Share):
        return tau
    if not isinstance(tau, (list, tuple)):
        return check_tau("gbm_tau", tau, ("adaptive", "tau"))
    if len(tau) != len(layers) or list(layers) != sorted(layers):
        raise ValueError(
            f"gbm_tau={list(tau)} for gbm_layers={list(layers)}: give one threshold for each layer, the layers in "
            "rising order; or one threshold for all"
        )
    return tuple(check_tau("gbm_tau", one, ()) for one in tau)


def check_kept(tokens: Any, merges: list[tuple[str, float]]) -> float | tuple[float | int, ...]:
    """``tokens`` for merges with these names and least shares that they can keep."""
    if isinstance(tokens, (list, tuple)):
        if len(tokens) != len(merges):
            raise ValueError(
                f"tokens={list(tokens)} for {len(merges)} merges: give one share or number for each "
                f"({', '.join(name for name, _ in merges) or 'there is none'}), or one share for all"
            )
        return tuple(check_share(kept, [merge]) for kept, merge in zip(tokens, merges, strict=True))
    if isinstance(tokens, bool) or not isinstance(tokens, Real) or isinstance(tokens, Integral):
        raise TypeError(
            "tokens is the share of the patches that each merge keeps, such as 0.6, or a list with one share or whole "
            f"number of tokens for each merge; got {tokens!r}"
        )
    return check_share(tokens, merges)


def check_share(kept: Any, merges: list[tuple[str, float]]) -> float | int:
    if isinstance(kept, bool) or not isinstance(kept, Real):
        raise TypeError(f"tokens holds shares such as 0.6 and whole numbers of tokens; got {kept!r}")
    if isinstance(kept, Integral):
        if kept < 1:
            raise ValueError(f"tokens names {kept} tokens to keep: at least 1")
        return int(kept)
    for name, least in merges:
        if not least <= float(kept) <= 1:
            raise ValueError(f"tokens={kept}: {name} keeps a share of its patches between {least:g} and 1")
    return float(kept)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} is {', '.join(others)} or {last}, got {value!r}")


def check_records(name: str, records: Any, cls: type) -> tuple[Any, ...]:
    if isinstance(records, (list, tuple)) and all(isinstance(record, cls) for record in records):
        return tuple(records)
    raise TypeError(f"{name} comes with settings that the library found ({cls.__name__}); got {records!r:.80}")


def check_window(window: Any) -> tuple[int, int]:
    try:
        high, wide = (operator.index(side) for side in window)
    except (TypeError, ValueError):
        raise TypeError(f"window is (height, width) in tokens, such as (2, 2); got {window!r}") from None
    if high < 1 or wide < 1 or high * wide < 2:
        raise ValueError(f"window holds at least two tokens, such as (2, 2); got {window!r}")
    return high, wide
