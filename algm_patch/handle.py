"""``model.algm``: the settings of a patched model and what its last forward pass did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .discovery import Vit, class_name
from .passes import ForwardPass, Step
from .settings import Settings
from .tokens import TokenMap
from .tracking import NOT_IN_BACKWARD, Tracker, backward_pass

SETTINGS = tuple(field.name for field in fields(Settings))


class Algm:
    """The handle of a patched model.

    Its settings (the arguments of :func:`algm_patch.apply_algm`) read and write as attributes and hold from the
    next forward pass on: ``model.algm.tau = 0.9`` is the paper's ALGM*. Printing it shows the settings and, of the
    last forward pass, the grid, the tokens after each layer and the thresholds used.

    Two threads may run one patched model at a time; each has its own forward pass.
    """

    clap_layer: int | None
    gbm_layers: tuple[int, ...]
    tau: float | str
    gbm_tau: float | str
    window: tuple[int, int]
    proportional_attention: bool
    taps: str

    def __init__(self, settings: Settings, vit: Vit) -> None:
        self.__dict__.update(_vit=vit, _model=class_name(vit.trunk), _owners=WeakSet())
        self.__dict__.update(_tracker=Tracker(), _latest=None)
        self._set(settings)

    def _set(self, settings: Settings, calibrated: float | None = None) -> None:
        """Take new settings, or raise and keep the old."""
        for name, layer in [("clap_layer", settings.clap_layer), *(("gbm_layers", n) for n in settings.gbm_layers)]:
            if layer is not None and layer > len(self._vit.blocks):
                raise ValueError(f"{name} names layer {layer}, but {self._model} has {len(self._vit.blocks)} blocks")
        if settings.proportional_attention:
            for number, (block, adapter) in enumerate(zip(self._vit.blocks, self._vit.adapters, strict=True), 1):
                if not adapter.takes_mask(block):
                    raise ValueError(
                        "proportional_attention=True weighs merged keys through the mask argument of attention, which "
                        f"block {number} of {self._model} ({class_name(block)}) has not. "
                        "Pass proportional_attention=False"
                    )
        self.__dict__.update(settings=settings, _calibrated=calibrated)

    def __getattr__(self, name: str) -> Any:
        if name in SETTINGS and "settings" in self.__dict__:
            return getattr(self.settings, name)
        raise AttributeError(f"model.algm has no attribute {name!r}. Settings: {', '.join(SETTINGS)}")

    def __setattr__(self, name: str, value: object) -> None:
        if name not in SETTINGS:
            raise AttributeError(f"model.algm has no setting {name!r}. Settings: {', '.join(SETTINGS)}")
        self._set(replace(self.settings, **{name: value}), self._calibrated)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *SETTINGS]

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled handle has the settings, not the tokens of a forward pass nor the models around it."""
        return {**self.__dict__, "_tracker": None, "_latest": None, "_owners": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tracker=Tracker(), _owners=WeakSet())

    # -- what the last forward pass did

    @property
    def token_map(self) -> TokenMap:
        """``labels`` [B, P+N] and ``sizes`` [B, P+M] of the last forward pass.

        Raises:
            RuntimeError: if there was none.
        """
        return self._past().token_map

    def unmerge(self, x: Tensor) -> Tensor:
        """Copy per-token results of a head that ran on merged tokens back to the full grid.

        Args:
            x: [B, P+M, ...], or [B, M, ...] if the head left out the prefix.

        Returns:
            [B, P+N, ...], or [B, N, ...].
        """
        token_map, prefix = self.token_map, self._past().num_prefix_tokens or 0
        if x.shape[1] == token_map.sizes.shape[1] - prefix:
            token_map = TokenMap(token_map.labels[:, prefix:] - prefix, token_map.sizes[:, prefix:])
        return token_map.unmerge(x)

    @property
    def tokens_per_layer(self) -> list[int]:
        """Tokens, prefix included, that each block of the last forward pass left."""
        past = self._past()
        total = (past.num_prefix_tokens or 0) + past.grid[0] * past.grid[1]
        steps = [past.steps[layer] for layer in sorted(past.steps)]
        return [total if step.after is None else step.after.sizes.shape[1] for step in steps]

    @property
    def window_similarity(self) -> Tensor:
        """[B, h, w] similarities that CLAP compared in the last forward pass; empty if it compared none."""
        for step in self._past().steps.values():
            if "CLAP" in step.plans:
                return step.plans["CLAP"].similarity
        return torch.empty(0)

    def _forget(self) -> None:
        """Know no forward pass."""
        self._tracker.last = self.__dict__["_latest"] = None

    def _past(self) -> ForwardPass:
        past: ForwardPass | None = self._tracker.last or self._latest
        if past is None or not past.steps:
            raise RuntimeError("model.algm knows no forward pass yet: run the model on an image first")
        return past

    def __repr__(self) -> str:
        stages = []
        if self.clap_layer is None:
            stages.append("CLAP  off")
        else:
            calibrated = f", calibrated: {self._calibrated:.4f}" if self._resolved_tau() != self.tau else ""
            stages.append(f"CLAP  layer {self.clap_layer}, window {self.window}, tau {self.tau}{calibrated}")
        layers = ", ".join(map(str, self.gbm_layers))
        stages.append(f"GBM   layer {layers}, tau {self.gbm_tau}" if layers else "GBM   off")
        lines = [
            f"ALGM on {self._model}, {len(self._vit.blocks)} blocks",
            *stages,
            f"proportional attention {'on' if self.proportional_attention else 'off'}, taps {self.taps}",
        ]
        try:
            lines += self._describe(self._past())
        except RuntimeError:
            lines.append("no forward pass yet")
        return "\n  ".join(lines)

    def _describe(self, past: ForwardPass) -> list[str]:
        height, width = past.grid
        lines = [
            f"last forward: batch {past.batch}, grid {height}x{width} + {past.num_prefix_tokens} prefix",
            f"  tokens after each layer: {' '.join(map(str, self.tokens_per_layer))}",
        ]
        for layer, step in sorted(past.steps.items()):
            for stage, plan in step.plans.items():
                least, most = f"{plan.tau.min():.4f}", f"{plan.tau.max():.4f}"
                tau = least if least == most else f"{least} to {most}"
                before, after = plan.sizes.shape[1], plan.step.sizes.shape[1]
                lines.append(f"  layer {layer + 1}: {stage} {before} -> {after}, tau {tau}")
        if past.taps is None:
            lines.append("  every block gave back the full grid: a method that ALGM does not know ran them")
        return lines

    # -- what the patched modules call during a forward pass

    def _resolved_tau(self) -> float | str:
        return self._calibrated if isinstance(self.tau, str) and self._calibrated is not None else self.tau

    def _open(self, grid: tuple[int, int]) -> None:
        """Begin a forward pass: the patch projection has left this grid."""
        prefix = getattr(self._vit.trunk, "num_prefix_tokens", None)
        opened = ForwardPass(self.settings, self._resolved_tau(), grid, self._tracker.taps, prefix)
        self._tracker.begin(opened)
        self.__dict__["_latest"] = self._tracker.last

    def _step(self, layer: int, x: Tensor) -> tuple[ForwardPass, Step]:
        """The forward pass that the input of a block (counted from 0) belongs to, and the block's step in it."""
        forward_pass = self._tracker.of(x)
        recomputing = backward_pass() != NOT_IN_BACKWARD
        if forward_pass is None:
            raise RuntimeError(
                f"block {layer + 1} of {self._model} was given tokens that ALGM cannot trace to a forward pass, so it "
                "does not know their grid. "
                + (
                    "They were recomputed in the backward pass from a copy of the input (activation offloading?)"
                    if recomputing
                    else "The patch embedding did not run before (was it replaced? then call apply_algm again)"
                )
            )
        step = forward_pass.steps.get(layer) if recomputing else None
        return forward_pass, step or forward_pass.begin(layer, x, *self._hooked(layer))

    def _hooked(self, layer: int) -> tuple[bool, bool]:
        """Whether hooks read the output of a block (counted from 0), and whether they may have written its input."""
        blocks = self._vit.blocks
        before, after = blocks[max(layer - 1, 0) : layer], blocks[layer + 1 : layer + 2]
        read = blocks[layer]._forward_hooks or any(block._forward_pre_hooks for block in after)
        changed = blocks[layer]._forward_pre_hooks or any(block._forward_hooks for block in before)
        return bool(read), bool(changed)


def handle_of(model: nn.Module) -> Algm:
    """The handle of a patched model.

    Raises:
        ValueError: if it is not patched.
    """
    handle = getattr(model, "algm", None)
    if not isinstance(handle, Algm):
        raise ValueError(f"{class_name(model)} is not patched. Call apply_algm on it first")
    return handle


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within, every module is in eval mode; afterwards each is in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
