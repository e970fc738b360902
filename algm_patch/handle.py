"""``model.algm``: the settings of a patched model, and what its last forward pass did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from .core.token_map import TokenMap
from .deprecated import warn_of
from .patching.bypassed import no_merge_in
from .patching.forward_pass import ForwardPass
from .patching.identity import warn_of_other_model
from .patching.runtime import Runtime
from .report import html, text
from .report.cost import VitCost, vit_cost
from .settings import Settings
from .settings.checks import check_settings, no_such
from .settings.record import RECORDS
from .settings.renamed import SETTINGS as RENAMED
from .settings.renamed import WITHOUT_EFFECT

NAMES = tuple(field.name for field in fields(Settings) if field.name not in RECORDS)


class Algm:
    """Show and change a patched model: its handle, ``model.algm``.

    Its settings (the fields of `algm_patch.Settings`) read and write as attributes and hold from the next
    forward pass on: ``model.algm.tau = 0.9`` is the paper's ALGM*. `update` changes several at once,
    `using` for a while. Printing it shows the settings and, of the last forward pass, the grid, the tokens after
    each layer and the thresholds used.

    Two threads may run one patched model at a time; each has its own forward pass. Of whole compiled graphs the last
    pass is known, whichever thread ran it. An export is no forward pass.

    Attributes:
        runtime: the engine, for code that works on forward passes themselves.
    """

    runtime: Runtime
    clap_layer: int | None
    gbm_layers: tuple[int, ...]
    tau: float | str
    gbm_tau: float | tuple[float, ...] | str
    window: tuple[int, int]
    proportional_attention: bool
    unmerge_at: str
    restore: bool | None
    compare: str
    matching: str
    size_aware: bool | None
    reduce: str
    place: str
    batch: str
    merge_to: float | tuple[float | int, ...] | None

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    # -- settings

    @property
    def settings(self) -> Settings:
        """All settings, for the next forward pass."""
        return self.runtime.settings

    @property
    def calibrated_tau(self) -> float | None:
        """The threshold that `algm_patch.calibrate` found and CLAP uses; None if it uses another."""
        return self.settings.calibrated_tau

    def update(self, *, settings: Settings | None = None, **changes: Any) -> None:
        """Change several settings at once, such as ``gbm_layers`` with one ``gbm_tau`` for each.

        Args:
            settings: to start from. Default: those of now.
            changes: by name.

        Raises:
            ValueError, TypeError: as `algm_patch.apply_algm`; the settings stay as they were.

        Warns:
            UserWarning: if ``settings`` were found on another model.
        """
        new = (self.settings if settings is None else check_settings(settings)).replace(**changes)
        if new.unmerge_at != self.settings.unmerge_at:
            raise ValueError(
                f"unmerge_at={new.unmerge_at!r} patches other modules than {self.settings.unmerge_at!r} did. Call "
                f"apply_algm(model, unmerge_at={new.unmerge_at!r}) again"
            )
        self.runtime.change(new)
        if settings is not None:
            warn_of_other_model(self.runtime)

    @contextmanager
    def using(self, *, settings: Settings | None = None, **changes: Any) -> Iterator[None]:
        """Run the body of a ``with`` statement under other settings, which are as for `update`, in every thread.

        Settings of before come back at the end, unless the body applies the patch anew.
        """
        runtime, before = self.runtime, self.settings
        self.update(settings=settings, **changes)
        try:
            yield
        finally:
            runtime.settings = before

    def __getattr__(self, name: str) -> Any:
        if "runtime" in self.__dict__:
            if name == WITHOUT_EFFECT:
                return getattr(self.settings, name)
            if name in RENAMED:
                warn_of(f"model.algm.{name}", f"model.algm.{RENAMED[name]}")
                return self.settings[RENAMED[name]]
            if name in NAMES:
                return self.settings[name]
        raise AttributeError(f"model.algm has no attribute {no_such(name, NAMES)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "runtime":
            super().__setattr__(name, value)
        elif name in (*NAMES, *RENAMED, WITHOUT_EFFECT):
            self.update(**{name: value})
        else:
            raise AttributeError(f"model.algm has no setting {no_such(name, NAMES)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *NAMES]

    # -- what the last forward pass did

    @property
    def last_pass(self) -> ForwardPass:
        """The newest forward pass: ``grid``, ``batch``, ``num_prefix_tokens``, ``width``, and ``blocks`` by number.

        Raises:
            RuntimeError: if there was none, or no block ran in it.
        """
        newest = self.runtime.newest
        if newest is None:
            raise RuntimeError("model.algm knows no forward pass yet: run the model on an image first")
        if not newest.blocks:
            raise RuntimeError(no_merge_in(self.runtime.model_name, newest, []))
        return newest

    @property
    def token_map(self) -> TokenMap:
        """``labels`` [B, P+N] and ``sizes`` [B, P+M] of the last forward pass.

        Raises:
            RuntimeError: if there was none.
        """
        return self.last_pass.token_map

    def unmerge(self, x: Tensor) -> Tensor:
        """Copy per-token results of a head that ran on merged tokens back to the full grid. Nothing is restored.

        Args:
            x: [B, P+M, ...], or [B, M, ...] if the head left out the prefix.

        Returns:
            [B, P+N, ...], or [B, N, ...].
        """
        return self.last_pass.unmerge(x)

    @property
    def tokens_per_layer(self) -> list[int]:
        """Tokens, prefix included, that each block of the last forward pass left; of a batch, the most of any image."""
        return text.tokens_per_layer(self.last_pass)

    @property
    def window_similarity(self) -> Tensor:
        """[B, h, w] similarities that CLAP compared in the last forward pass; empty if it compared none."""
        for block in self.last_pass.blocks.values():
            if "CLAP" in block.plans:
                return block.plans["CLAP"].similarity
        return torch.empty(0)

    @property
    def gflops(self) -> float:
        """GFLOPs of the ViT for an image of the last forward pass, on average over the batch.

        Patch embedding, blocks and matching, up to the last block's output; multiply and add counted apart. It follows
        from the tokens in each layer and the sizes of the weights, so it is the same on any device and in any dtype.

        Raises:
            RuntimeError: if there was no forward pass.
            ValueError: if the attention of a block is not recognized: see ``Adapter.cost``.
        """
        past = self.last_pass
        cost = self.cost_of(past)
        return fmean(cost.of_images(past) or [cost.without_merging(past)]) / 1e9

    @property
    def unpatched_gflops(self) -> float:
        """``gflops`` of the unpatched model, on an image of the same size; raises as that does."""
        past = self.last_pass
        return self.cost_of(past).without_merging(past) / 1e9

    def cost_of(self, past: ForwardPass) -> VitCost:
        """Return what the ViT costs for images of the grid of a forward pass."""
        return vit_cost(self.runtime.trunk, self.runtime.vit, past.grid)

    def __repr__(self) -> str:
        return text.report(self._title, self.settings, self.runtime.newest, self.saved)

    def _repr_html_(self) -> str:
        """Return a card for notebooks: settings, tokens of each layer, GFLOPs and grid of the last forward pass."""
        return html.report(self._title, self.settings, self.runtime.newest, self.saved)

    @property
    def _title(self) -> str:
        return f"ALGM on {self.runtime.model_name}, {self.runtime.depth} blocks"

    def saved(self) -> str:
        """Return what merging saved in the last forward pass, or why that is not known, as a line."""
        try:
            return text.saving(self.gflops, self.unpatched_gflops)
        except (RuntimeError, ValueError) as unknown:  # the model is gone, or its attention is not recognized
            return str(unknown)
