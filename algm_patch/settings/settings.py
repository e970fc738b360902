"""The settings of a patched model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..core.checks import check_choice, check_layer, check_window
from ..core.thresholds import Share
from ..files import written_whole
from .checks import check_clap_tau, check_gbm_tau, check_layers, check_merge_to, check_names, check_record, check_switch
from .choosing import chosen
from .loading import KEY, values_in
from .record import Calibrated, Record
from .renamed import accepts_old_names, by_new_names, by_old_name

Tau = float | Share | Literal["auto", "paper"]
GbmTau = float | Sequence[float | Share] | Share | Literal["adaptive", "tau"]
UnmergeAt = Literal["before_head", "after_head"]
Compare = Literal["token", "key", "query", "value"]
Reduce = Literal["mean", "pick"]
Matching = Literal["bipartite", "mutual"]
Place = Literal["before_mlp", "after_mlp"]
Batch = Literal["auto", "image", "min"]
MergeTo = float | Sequence[float | int] | None


@accepts_old_names
@dataclass(frozen=True)
class Settings:
    """Hold what merges where in a patched model. Frozen: a forward pass keeps the settings it began with.

    Args:
        clap_layer: the block, counted from 1, in which windows of similar tokens merge (paper §3.2). None: none.
        gbm_layers: blocks in which tokens merge over the whole image (supplement, Tab. 1). []: none.
        tau: windows at least this similar (mean cosine) merge; above 1 no windows do, and gbm_layers go on. "auto":
            from the image's own similarities, inside (-1, 1), until `algm_patch.calibrate` has set a data set's value.
            "paper": mean + standard deviation as published (§3.3); it can exceed 1, and warns when it merges no
            windows.
        gbm_tau: threshold of gbm_layers. "adaptive": the authors' rule, for each image; at least 0.75 if tau="auto".
            "tau": that of CLAP, as the paper writes. Or a number, or one for each layer.
        window: (height, width) in tokens.
        proportional_attention: a merged token weighs, as a key, as much as the tokens it holds (Token Merging,
            §3). Without training this decides the quality. Pass False for models trained with ALGM as published.
        unmerge_at: "before_head": the last block gives back the full grid. "after_head": its tokens stay merged, and
            the results of a decoder that is known to run on them (Segmenter's two) are unmerged, as published;
            faster, and what models trained with ALGM expect. Everything else that reads the last block, its hooks
            included, then finds merged tokens.
        compare: the vectors whose cosine decides (supplement, Tab. 4f). "token": the tokens. "key", "query", "value":
            those that the attention of the same block made of them, all heads together, as its projection leaves
            them: before any norm or rotary turn.
        matching: who proposes in gbm_layers. "bipartite": every other token, to those between them (paper §3.2).
            "mutual": every token is compared with all others, and two that are each other's nearest may merge. Vectors
            wider than 64 are folded first, for the cost, so its thresholds are on a scale of their own. Better where
            GBM runs in many layers; it takes thresholds, as how many are a pair is not known beforehand.
        size_aware: in gbm_layers, tokens that hold many others count as further from each other (Ward's criterion).
            None: as ``proportional_attention``, so that models trained with ALGM as published need only that one.
        restore: what each original token loses at a merge, its difference from the merged token, is kept (without
            gradients) and added back wherever the full grid is given back. Nothing is restored with
            unmerge_at="after_head", whose results have another width, nor with reduce="pick", as a member is not the
            mean of its group. None: as ``proportional_attention``.
        reduce: how a group becomes one token (Tab. 4c). "mean": the size-weighted mean. "pick": one of its members at
            random, by torch's generator.
        place: the place in a block where tokens merge (Tab. 4b). "before_mlp" or "after_mlp".
        batch: "image": every image of a batch merges by its own content, as if it were alone. "min": every image
            merges the same number, the smallest over the batch (the authors' way). "auto": "image" in eval mode, "min"
            in training.
        merge_to: in place of thresholds, the share of its patches that each merge leaves, such as 0.6; or a list with a
            share or a whole number for each merge, CLAP's first. The most similar tokens of each image merge. Shapes
            then depend on nothing but the image size: for CUDA graphs, export and TensorRT.
        calibrated: the threshold of a data set, as `algm_patch.calibrate` found it. It holds while ``tau``,
            ``clap_layer``, ``window``, ``compare`` and ``place`` are those that it was found with.
        record: how `algm_patch.tune` found the settings. It stays only with the settings that it found:
            ``tuned.replace(tau=0.9).record`` is None.

    Raises:
        ValueError, TypeError: naming the setting, what was given and what is expected.
    """

    clap_layer: int | None = 1
    gbm_layers: Sequence[int] = (5,)
    tau: Tau = "auto"
    gbm_tau: GbmTau = "adaptive"
    window: tuple[int, int] = (2, 2)
    proportional_attention: bool = True
    unmerge_at: UnmergeAt = "before_head"
    restore: bool | None = None
    compare: Compare = "token"
    matching: Matching = "bipartite"
    size_aware: bool | None = None
    reduce: Reduce = "mean"
    place: Place = "before_mlp"
    batch: Batch = "auto"
    merge_to: MergeTo = None
    calibrated: Calibrated | None = field(default=None)
    record: Record | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.clap_layer is not None:
            self._set("clap_layer", check_layer("clap_layer", self.clap_layer))
        layers = check_layers(self.gbm_layers)
        self._set("gbm_layers", tuple(sorted(layers)))
        self._set("tau", check_clap_tau(self.tau))
        self._set("gbm_tau", check_gbm_tau(self.gbm_tau, layers))
        self._set("window", check_window(self.window))
        for name in ("proportional_attention", *FOLLOWING):
            check_switch(name, self[name], name in FOLLOWING)
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), get_args(choices))
        if self.clap_layer is not None and self.gbm_layers and self.clap_layer > self.gbm_layers[0]:
            raise ValueError(
                f"{self.named('clap_layer')} comes after {self.named('gbm_layers')}: CLAP needs the grid "
                "that global matching dissolves. Put CLAP first, or switch a stage off (clap_layer=None, gbm_layers=[])"
            )
        if self.merge_to is not None:
            self._check_merge_to(layers)
        if self.gbm_layers and self.gbm_tau == "tau" and self.clap_layer is None and isinstance(self.tau, str):
            raise ValueError(
                f"gbm_tau='tau' takes CLAP's threshold, but clap_layer is None and {self.named('tau')} is computed "
                "there. Give tau as a number, or set gbm_tau"
            )
        self._set("calibrated", check_record("calibrated", self.calibrated, Calibrated))
        self._set("record", check_record("record", self.record, Record))
        if self.record is not None and not self.record.holds_for(self):
            self._set("record", None)

    def _check_merge_to(self, layers: tuple[int, ...]) -> None:
        thresholds = [name for name in ("tau", "gbm_tau") if self[name] != getattr(Settings, name)]
        if thresholds:
            raise ValueError(
                f"merge_to={self.merge_to} chooses by rank, {' and '.join(map(self.named, thresholds))} by threshold. "
                f"Give up one of them: merge_to=None, or leave out {' and '.join(thresholds)}"
            )
        if self.matching == "mutual" and self.gbm_layers:
            raise ValueError(
                f"merge_to={self.merge_to} carries out fixed numbers of proposals, and matching='mutual' finds as many "
                "pairs as an image has. Use matching='bipartite', or thresholds: merge_to=None"
            )
        if isinstance(self.merge_to, (list, tuple)) and list(layers) != sorted(layers):
            raise ValueError(
                f"merge_to={list(self.merge_to)} for gbm_layers={list(layers)}: give the layers in rising order, so "
                "that each merge has its own share or number; or one share for all"
            )
        local = [] if self.clap_layer is None else [("CLAP", 1 / (self.window[0] * self.window[1]))]
        merges = [*local, *(("GBM", 0.5) for _ in self.gbm_layers)]
        self._set("merge_to", check_merge_to(self.merge_to, merges))

    def patches_left(self, merge: int) -> float | int:
        """Return the share of its patches, or the number of them, that one merge (counted from 0) leaves."""
        assert self.merge_to is not None
        return self.merge_to[merge] if isinstance(self.merge_to, Sequence) else self.merge_to

    def is_on(self, name: str) -> bool:
        """Return a switch that is as ``proportional_attention`` unless it is given, such as "size_aware"."""
        value: bool | None = getattr(self, name)
        return self.proportional_attention if value is None else value

    @property
    def calibrated_tau(self) -> float | None:
        """The threshold of a data set that ``tau`` stands for; None where CLAP takes each image's own, or a number."""
        found = self.calibrated
        return found.value if found is not None and self.merge_to is None and found.holds_for(self) else None

    def named(self, name: str) -> str:
        """Return ``name=value`` for an error, which says so if the value is the default and nobody gave it."""
        value = self[name]
        shown = list(value) if isinstance(value, tuple) else value
        return f"{name}={shown!r}{' (the default)' if value == getattr(Settings, name) else ''}"

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def keys(self) -> list[str]:
        """Return the names of the settings, so that ``dict(settings)`` has them."""
        return [field.name for field in dataclasses.fields(self)]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """Return a setting by its old name."""
        return by_old_name(self, name)

    def replace(self, **changes: Any) -> Settings:
        """Return these settings with other values of some.

        Raises:
            TypeError: if there is no setting of a name; the error lists all.
            ValueError, TypeError: as the constructor.
        """
        changes = by_new_names(changes)
        check_names(changes, self.keys())
        return dataclasses.replace(self, **changes)

    def at(self, *, gflops: float | None = None, keep: float | Mapping[str, float] | None = None) -> Settings:
        """Return other settings of the record of `algm_patch.tune`, without measuring anew.

        Args:
            gflops: those that keep most for at most this part of the unpatched model's GFLOPs.
            keep: the cheapest whose bound is at least this: a number, or a dict as for ``tune``.

        Raises:
            ValueError: if the record holds none, or there is no record. The error says what the record spans.
        """
        if self.record is None:
            raise ValueError("at: these settings have no record. Take settings that tune returned or saved, unchanged")
        trial = chosen(self.record, gflops, keep)
        return self.replace(**trial.settings, record=self.record.choosing(trial))

    def metadata(self) -> dict[str, str]:
        """Return what a checkpoint carries: ``safetensors.torch.save_file(weights, path, metadata=...)``."""
        return {KEY: json.dumps(dataclasses.asdict(self))}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all, for `Settings.load`."""
        with written_whole(path) as unfinished:
            unfinished.write_text(json.dumps({KEY: dataclasses.asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Settings:
        """Read settings from a JSON file that `Settings.save` wrote, or a safetensors file with their metadata.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is damaged, or holds no settings, or one that this version does not know or take.
        """
        values = values_in(path, cls)
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None


# Switches that are as proportional_attention unless they are given.
FOLLOWING = ("size_aware", "restore")
CHOICES: dict[str, Any] = {
    "unmerge_at": UnmergeAt,
    "compare": Compare,
    "matching": Matching,
    "reduce": Reduce,
    "place": Place,
    "batch": Batch,
}
