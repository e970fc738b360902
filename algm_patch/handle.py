"""``model.algm``: the settings of a patched model and what its last forward pass did."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ._version import __version__
from .adapters.registry import is_wrapped, readers_of
from .core.compiling import eagerly, in_one_graph, traces_python, tracing_context
from .core.token_map import TokenMap
from .deprecated import warn_of
from .patching.find_vit import Vit, class_name
from .patching.forward_pass import ForwardPass, Step
from .patching.tracker import NOT_IN_BACKWARD, Tracing, Tracker, backward_pass, is_remembered
from .report.cost import VitCost, vit_cost
from .report.html import card
from .settings.checks import check_settings, no_such
from .settings.record import RECORDS, weight_sample
from .settings.renamed import SETTINGS as RENAMED
from .settings.renamed import WITHOUT_EFFECT
from .settings.settings import Settings

# Those that change without patching anew.
SETTINGS = tuple(field.name for field in fields(Settings) if field.name not in ("unmerge_at", *RECORDS))
# Modules of torch whose hooks leave the tokens alone: one gathers weights, the other notes which module runs.
NOT_OF_TOKENS = ("torch.distributed.fsdp", "torch.distributed._composable.fsdp", "torch.utils.module_tracker")
# So many patch embeddings in a row without a block are no crops or frames that go through the blocks together.
MANY_IDLE = 32


class Algm:
    """The handle of a patched model.

    Its settings (the arguments of :func:`algm_patch.apply_algm`) read and write as attributes and hold from the
    next forward pass on: ``model.algm.tau = 0.9`` is the paper's ALGM*. Printing it shows the settings and, of the
    last forward pass, the grid, the tokens after each layer and the thresholds used. ``gflops`` and
    ``unpatched_gflops`` are what the ViT cost there.

    Two threads may run one patched model at a time; each has its own forward pass. Of whole compiled graphs the last
    pass is known, whichever thread ran it. An export is no forward pass.
    """

    clap_layer: int | None
    gbm_layers: tuple[int, ...]
    tau: float | str
    gbm_tau: float | tuple[float, ...] | str
    window: tuple[int, int]
    proportional_attention: bool
    compare: str
    reduce: str
    place: str
    batch: str
    merge_to: float | tuple[float | int, ...] | None

    def __init__(self) -> None:
        # The modules own the handle; it owns none of them, so that a model goes when its last user lets go.
        self.__dict__.update(_trunk=None, _owners=WeakSet())

    def _link(self, trunk: nn.Module) -> None:
        """Belong to this trunk, whose attribute ``_algm`` holds the parts that are patched."""
        self.__dict__.update(_trunk=weakref.ref(trunk), _model=class_name(trunk))
        self.__dict__.update(_depth=len(self._vit.blocks))

    def _begin(self, settings: Settings) -> None:
        """Be newly patched: know no forward pass."""
        self.__dict__.update(settings=settings)
        self._know_no_pass()

    def _know_no_pass(self) -> None:
        """Make what knows the forward passes: run by Python, compiled, and exported."""
        tracing = Tracing()
        self.__dict__.update(
            _tracker=Tracker(tracing, object()),
            _tracing=tracing,
            _exports=WeakKeyDictionary(),
            _latest=None,
            _told=False,
        )

    @property
    def _linked(self) -> bool:
        return self._trunk is not None and self._trunk() is not None

    def _the_trunk(self) -> Any:
        if not self._linked:
            raise RuntimeError("the model of this handle is gone: it was deleted, or a part of it was copied alone")
        return self._trunk()

    @property
    def _vit(self) -> Vit:
        return self._the_trunk()._algm.vit

    def _sequence(self) -> nn.Module:
        return self._the_trunk().get_submodule(self._vit.path)

    def _identity(self) -> tuple[str, int, tuple[float, ...], str]:
        """What settings that are measured now hold for: the first fields of ``Record``."""
        model = self._model.removeprefix("FSDP")  # which fully_shard writes before the name of a class
        return model, self._depth, weight_sample(self._vit.projection), __version__

    def _set(self, settings: Settings) -> None:
        """Take new settings, or raise and keep the old."""
        check_fit(settings, self._vit, self._model)
        self.__dict__.update(settings=settings)

    def __getattr__(self, name: str) -> Any:
        if name in RENAMED and "settings" in self.__dict__:
            warn_of(f"model.algm.{name}", f"model.algm.{RENAMED[name]}")
            return getattr(self.settings, RENAMED[name])
        if name in SETTINGS and "settings" in self.__dict__:
            return getattr(self.settings, name)
        raise AttributeError(f"model.algm has no attribute {no_such(name, SETTINGS)}")

    def __setattr__(self, name: str, value: object) -> None:
        if name not in (*SETTINGS, *RENAMED, WITHOUT_EFFECT):
            raise AttributeError(f"model.algm has no setting {no_such(name, SETTINGS)}")
        self._set(self.settings.replace(**{name: value}))

    def update(self, *, settings: Settings | None = None, **changes: Any) -> None:
        """Change several settings at once, such as ``gbm_layers`` with one ``gbm_tau`` for each.

        Args:
            settings: to start from. Default: those of now.
            changes: by name.

        Raises:
            ValueError, TypeError: as :func:`algm_patch.apply_algm`; the settings stay as they were.
        """
        new = (self.settings if settings is None else check_settings(settings)).replace(**changes)
        if new.unmerge_at != self.settings.unmerge_at:
            raise ValueError(
                f"unmerge_at={new.unmerge_at!r} patches other modules than {self.settings.unmerge_at!r} did. Call "
                f"apply_algm(model, unmerge_at={new.unmerge_at!r}) again"
            )
        self._set(new)

    @contextmanager
    def using(self, *, settings: Settings | None = None, **changes: Any) -> Iterator[None]:
        """Run the body of a ``with`` statement under other settings, which are as for :meth:`update`."""
        before = self.settings
        self.update(settings=settings, **changes)
        try:
            yield
        finally:
            self._set(before)

    @property
    def last_pass(self) -> ForwardPass:
        """The newest forward pass: ``grid``, ``batch``, ``num_prefix_tokens``, ``width``, and ``steps`` by block.

        Raises:
            RuntimeError: if there was none, or no block ran in it.
        """
        return self._past()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *SETTINGS]

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled handle has the settings, not the tokens of a forward pass nor the models around it."""
        gone = ("_trunk", "_tracker", "_tracing", "_exports", "_latest", "_owners")
        return {**self.__dict__, **dict.fromkeys(gone)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _owners=WeakSet())
        self._know_no_pass()

    @property
    def calibrated_tau(self) -> float | None:
        """The threshold that :func:`algm_patch.calibrate` found and CLAP uses; None if it uses another."""
        return self.settings.calibrated_tau

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
        return self._past().unmerge(x)

    @property
    def tokens_per_layer(self) -> list[int]:
        """Tokens, prefix included, that each block of the last forward pass left; of a batch, the most of any image."""
        past = self._past()
        patches = past.grid[0] * past.grid[1]
        steps = [past.steps[layer] for layer in sorted(past.steps)]
        return [step.num_prefix_tokens + patches if step.after is None else step.after.sizes.shape[1] for step in steps]

    @property
    def gflops(self) -> float:
        """Return the GFLOPs of the ViT for an image of the last forward pass, on average over the batch.

        Patch embedding, blocks and matching, up to the last block's output; multiply and add counted apart. It follows
        from the tokens in each layer and the sizes of the weights, so it is the same on any device and in any dtype.

        Raises:
            RuntimeError: if there was no forward pass.
            ValueError: if the attention of a block is not recognized: see ``Adapter.cost``.
        """
        past = self._past()
        return fmean(self._operations(past) or [self._cost(past).without_merging(past)]) / 1e9

    @property
    def unpatched_gflops(self) -> float:
        """Return ``gflops`` of the unpatched model, on an image of the same size; raise as that does."""
        past = self._past()
        return self._cost(past).without_merging(past) / 1e9

    def _operations(self, past: ForwardPass) -> list[int]:
        """Return the operations of the ViT for each image of a forward pass."""
        return self._cost(past).of_images(past)

    def _cost(self, past: ForwardPass) -> VitCost:
        return vit_cost(self._the_trunk(), self._vit, past.grid)

    @property
    def window_similarity(self) -> Tensor:
        """[B, h, w] similarities that CLAP compared in the last forward pass; empty if it compared none."""
        for step in self._past().steps.values():
            if "CLAP" in step.plans:
                return step.plans["CLAP"].similarity
        return torch.empty(0)

    def _forget(self) -> None:
        """Know no forward pass."""
        self._tracker.forget()
        self.__dict__["_latest"] = None

    def _past(self) -> ForwardPass:
        """Return the newest forward pass, or raise RuntimeError if there is none or no block ran in it."""
        past = self._newest
        if past is None:
            raise RuntimeError("model.algm knows no forward pass yet: run the model on an image first")
        if not past.steps:
            raise RuntimeError(no_merge_in(self._model, past, []))
        return past

    @property
    def _newest(self) -> ForwardPass | None:
        """The newest forward pass: of this thread, or of all if it has run none itself."""
        newest: ForwardPass | None = self._latest if self._tracker.last is None else self._tracker.newest
        return newest

    def __repr__(self) -> str:
        *stages, (_, others) = self._summary()
        lines = [self._title, *(f"{stage:4}  {text}" for stage, text in stages), others]
        past = self._newest
        lines += self._describe(past) if past and past.steps else [no_pass(past)]
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        """A card for notebooks: settings, tokens of each layer, GFLOPs and grid of the last forward pass."""
        past = self._newest
        if past is None or not past.steps:
            return card(self._title, self._summary(), [no_pass(past)], [], 0)
        height, width = past.grid
        facts = [
            f"last forward pass: batch {past.batch}, grid {height}×{width} + {past.num_prefix_tokens} prefix",
            self._saved(),
        ]
        whole = past.num_prefix_tokens + height * width
        return card(self._title, self._summary(), facts, self.tokens_per_layer, whole)

    @property
    def _title(self) -> str:
        return f"ALGM on {self._model}, {self._depth} blocks"

    def _summary(self) -> list[tuple[str, str]]:
        """The settings: of each stage, and then, under no name, of both."""
        clap, gbm = "off", "off"
        if self.clap_layer is not None:
            calibrated = "" if self.calibrated_tau is None else f", calibrated: {self.calibrated_tau:.4f}"
            clap = f"layer {self.clap_layer}, window {self.window}, tau {self.tau}{calibrated}"
        if self.gbm_layers:
            gbm = f"layer {', '.join(map(str, self.gbm_layers))}, tau {self.gbm_tau}"
        others = (
            f"proportional attention {'on' if self.proportional_attention else 'off'}"
            f"{', unmerged after the head' if self._after_head else ''}"
            f"{''.join(self._ablations())}"
        )
        return [("CLAP", clap), ("GBM", gbm), ("", others)]

    def _saved(self) -> str:
        """Return what merging saved in the last forward pass, or why that is not known, as a line."""
        try:
            merging, without = self.gflops, self.unpatched_gflops
        except (RuntimeError, ValueError) as unknown:  # the model is gone, or its attention is not recognized
            return str(unknown)
        return f"{merging:.3g} of {without:.3g} GFLOPs of the ViT an image: {1 - merging / without:.0%} fewer"

    def _ablations(self) -> Iterator[str]:
        for name in ("compare", "reduce", "place", "batch", "merge_to"):
            if getattr(self, name) != getattr(Settings, name):
                yield f", {name} {getattr(self, name)}"

    def _describe(self, past: ForwardPass) -> list[str]:
        height, width = past.grid
        lines = [
            f"last forward: batch {past.batch}, grid {height}x{width} + {past.num_prefix_tokens} prefix",
            f"  tokens after each layer: {' '.join(map(str, self.tokens_per_layer))}",
            f"  {self._saved()}",
        ]
        for layer, step in sorted(past.steps.items()):
            for stage, plan in step.plans.items():
                least, most = f"{plan.tau.min():.4f}", f"{plan.tau.max():.4f}"
                tau = least if least == most else f"{least} to {most}"
                before, after = token_range(plan.sizes), token_range(plan.step.sizes)
                lines.append(f"  layer {layer + 1}: {stage} {before} -> {after}, tau {tau}")
        if past.taps is None:
            lines.append("  every block gave back the full grid: a method that ALGM does not know ran them")
        else:
            taps = [str(layer + 1) for layer, step in sorted(past.steps.items()) if step.tap and step.after is not None]
            lines += [f"  full grid given back after layer {', '.join(taps)}"] if taps else []
        return lines

    # -- what the patched modules call during a forward pass

    def _resolved_tau(self) -> float | str:
        """Return CLAP's threshold, or the rule for it."""
        calibrated = self.settings.calibrated_tau
        return self.settings.tau if calibrated is None else calibrated

    @property
    def _passes(self) -> Tracing:
        """The forward passes of this thread, or the one that is compiled or exported now."""
        if not in_one_graph(self.settings.merge_to is not None):
            return self._tracker
        if traces_python() and (context := tracing_context()) is not None:
            return self._exports.setdefault(context, Tracing())  # and gone with it
        return self._tracing

    def _in_graph(self, begun: bool = True) -> bool:
        """Whether a compiler traces a whole forward pass now, or could from here on (which has not ``begun``)."""
        return in_one_graph(self.settings.merge_to is not None) and (not begun or self._passes.current is not None)

    def _open(self, grid: tuple[int, int]) -> None:
        """Begin a forward pass: the patch projection has left this grid."""
        trunk, passes = self._the_trunk(), self._passes
        check_unchanged(self._sequence(), self._vit.blocks, self._model)
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        opened = ForwardPass(self.settings, self._resolved_tau(), grid, prefix, trunk.training)
        self._tracing.end()
        passes.begin(opened)
        if passes.last is opened and not traces_python():
            object.__setattr__(self, "_latest", opened)
        if not torch.compiler.is_compiling() and self._tracker.idle >= MANY_IDLE:
            self._warn_once(opened, [])

    def _step(self, layer: int, x: Tensor) -> tuple[ForwardPass, Step]:
        """The forward pass that the input of a block (counted from 0) belongs to, and the block's step in it."""
        forward_pass = self._passes.of(x, layer)
        if forward_pass is None:
            raise RuntimeError(
                f"block {layer + 1} of {self._model} was given tokens that ALGM cannot trace to a forward pass, so it "
                f"does not know their grid. {self._why_untraced(x)}"
            )
        if not forward_pass.steps:
            forward_pass.taps = self._taps()
        recomputed = forward_pass.steps.get(layer)
        return forward_pass, recomputed or forward_pass.begin(layer, x, *self._hooked(layer))

    def _remember(self, x: Tensor, forward_pass: ForwardPass) -> None:
        """A block of this pass left these tokens."""
        self._passes.remember(x, forward_pass)

    def _leave(self, x: object) -> None:
        """The method that runs the blocks returns this: tokens still merged remember their pass."""
        forward_pass = self._passes.current
        if forward_pass is not None and forward_pass.settings.unmerge_at == "after_head":
            self._passes.remember(x, forward_pass)
        self._over()

    def _over(self) -> None:
        """Warn, once, if the forward pass that is over now passed by blocks that were to merge."""
        if torch.compiler.is_compiling() or backward_pass() != NOT_IN_BACKWARD:
            return
        past = self._tracker.newest
        if past is not None and (missing := past.passed_by()):
            self._warn_once(past, missing)

    def _warn_once(self, past: ForwardPass, missing: list[int]) -> None:
        if not self._told:
            self.__dict__["_told"] = True
            warnings.warn(no_merge_in(self._model, past, missing), stacklevel=2)

    @property
    def _after_head(self) -> bool:
        return self.settings.unmerge_at == "after_head"

    def _taps(self) -> frozenset[int] | None:
        """Blocks (from 0) that must give back the full grid; None if every one must."""
        taps = self._passes.taps if runs_in_order(self._sequence()) else None
        if not self._after_head:
            return taps
        if taps is None:
            raise RuntimeError(
                f"unmerge_at='after_head': the blocks of {self._model} are run by a method that ALGM does not know, "
                "which may read merged tokens as a grid. Call apply_algm with unmerge_at='before_head'"
            )
        return taps - {self._depth - 1}

    def _decode(self, decoder: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """A decoder on merged tokens: on one image after the other, if they have different numbers of them."""
        forward_pass = self._passes.known(x)
        if forward_pass is None:
            raise RuntimeError(
                f"unmerge_at='after_head': the decoder was given tokens that ALGM cannot trace to a forward pass of "
                f"{self._model}. Hand it what that returned, or a slice of it; or call apply_algm with "
                "unmerge_at='before_head'"
            )
        images = forward_pass.images(x)
        if images is None:
            with self._passes.decoding(forward_pass):
                return decoder(x, *args, **kwargs)
        results = []
        for image, one in enumerate(images):
            with self._passes.decoding(forward_pass, image):
                results.append(decoder(one, *args, **kwargs))
        return torch.cat(results)

    def _decoded(self, x: Tensor) -> Tensor:
        """The output of a decoder's head, one result a token, on the full grid."""
        if self._passes.decoded is None:
            return x
        forward_pass, image = self._passes.decoded
        return forward_pass.unmerge(x, image)

    def _why_untraced(self, x: Tensor) -> str:
        if backward_pass() != NOT_IN_BACKWARD:
            return (
                "They were recomputed in the backward pass from a copy of the input (activation offloading, or a dtype "
                "that changes before each block, such as fully_shard's output_dtype?)"
            )
        if is_remembered(x) and self._tracker.known(x) is None:
            return (
                "Another patched model took or left them. Give each model the image, or run the patch embedding of "
                "this one before its blocks"
            )
        if self._tracker.current is not None:
            return (
                "In the forward pass under way it ran already. If several passes take turns, hand the tokens from "
                "block to block as they are, or run one pass after the other"
            )
        return "The patch embedding did not run before (was it replaced? then call apply_algm again)"

    def _hooked(self, layer: int) -> tuple[bool, bool]:
        """Return whether hooks read the output of a block (counted from 0), and may have written its input.

        A forward that was set on a block since counts as a hook before and after it.
        """
        blocks, every = self._vit.blocks, nn.modules.module  # which holds the hooks on every module
        before, block, after = blocks[max(layer - 1, 0) : layer], blocks[layer], blocks[layer + 1 : layer + 2]
        everywhere = of_tokens(every._global_forward_hooks) or of_tokens(every._global_forward_pre_hooks)
        read = (
            everywhere
            or of_tokens(block._forward_hooks)
            or block._backward_hooks
            or block._backward_pre_hooks
            or any(of_tokens(other._forward_pre_hooks) or other._backward_hooks for other in after)
            or any(map(is_wrapped, [block, *after]))
            or every._global_backward_hooks
            or every._global_backward_pre_hooks
        )
        changed = (
            everywhere
            or of_tokens(block._forward_pre_hooks)
            or any(of_tokens(other._forward_hooks) for other in before)
            or any(map(is_wrapped, [*before, block]))
        )
        return bool(read) and bool(after or not self._after_head), bool(changed)


def no_pass(past: ForwardPass | None) -> str:
    """Return a line that says why there is nothing to tell of the last forward pass."""
    return "no forward pass yet" if past is None else "last forward: the patch embedding ran, but none of the blocks"


def no_merge_in(model: str, past: ForwardPass, missing: list[int]) -> str:
    """Return what to do about a forward pass that passed by these blocks (from 0), or by all if it has no step."""
    if past.taps is not None and past.steps and missing and max(past.steps) < missing[0]:
        return (
            f"{model} ended a forward pass after block {max(past.steps) + 1}, before any block that merges, so "
            "nothing merged. Set model.algm.clap_layer or gbm_layers to blocks up to there; or call remove_algm(model)"
        )
    if past.steps:
        numbers = ", ".join(str(layer + 1) for layer in missing)
        what = f"{model} ended a forward pass without block {numbers}, so nothing merged there"
        remedy = "set model.algm.clap_layer and gbm_layers to blocks that run"
    else:
        what = f"the patch embedding of {model} ran, but none of its blocks did, so nothing merged"
        remedy = "call remove_algm(model)"
    return (
        f"{what}. Code that calls the parts of a block itself (its norms, attention, MLP) goes past the patch: let it "
        f"call the block, as block(x). If the model is to run like this, {remedy}"
    )


def of_tokens(hooks: Mapping[int, Callable[..., Any]]) -> bool:
    """Return whether there are hooks other than those of torch that leave the tokens alone."""
    return any(not str(getattr(hook, "__module__", "")).startswith(NOT_OF_TOKENS) for hook in hooks.values())


def token_range(sizes: Tensor) -> str:
    """How many tokens images of these sizes [B, M] have."""
    counts = (sizes > 0).sum(1)
    least, most = int(counts.amin()), int(counts.amax())
    return str(most) if least == most else f"{least} to {most}"


def check_fit(settings: Settings, vit: Vit, model: str) -> None:
    """Raise ValueError if a setting asks for what the blocks of a ViT do not have."""
    for name, layer in [("clap_layer", settings.clap_layer), *(("gbm_layers", n) for n in settings.gbm_layers)]:
        if layer is None:
            continue
        if layer > len(vit.blocks):
            default = " (by default)" if settings[name] == getattr(Settings, name) else ""  # which nobody gave
            raise ValueError(f"{name}{default} names layer {layer}, but {model} has {len(vit.blocks)} blocks")
        block, adapter = vit.blocks[layer - 1], vit.adapters[layer - 1]
        if settings.compare != "token" and adapter.features(block, settings.compare) is None:
            raise ValueError(
                f"compare={settings.compare!r}: in block {layer} of {model} ({class_name(block)}) there is no one "
                "module whose output it could compare: attention uses the weights directly, is of another library, "
                "or there are several. Pass compare='token'"
            )
    if settings.proportional_attention:
        for number, (block, adapter) in enumerate(zip(vit.blocks, vit.adapters, strict=True), 1):
            if not adapter.takes_mask(block):
                raise ValueError(
                    "proportional_attention=True (the default) weighs merged keys through the mask argument of "
                    f"attention, which block {number} of {model} ({class_name(block)}) has not. Pass "
                    f"proportional_attention=False{adapter.mask_remedy(block)}"
                )


def check_unchanged(sequence: nn.Module, blocks: list[nn.Module], model: str) -> None:
    """Raise RuntimeError if a sequence no longer runs the blocks that were patched (as they are, or wrapped)."""
    found = list(sequence.children())
    if len(found) != len(blocks) or any(
        child is not block and all(part is not block for part in child.modules())
        for child, block in zip(found, blocks, strict=False)
    ):
        raise RuntimeError(
            f"the blocks of {model} are no longer those that apply_algm patched (blocks were replaced, added or "
            "removed). Call apply_algm again"
        )


def runs_in_order(sequence: nn.Module) -> bool:
    """Whether a sequence of blocks has no forward that might read between them."""
    own = type(sequence).forward
    return "forward" not in sequence.__dict__ and (
        own in (nn.Sequential.forward, nn.ModuleList.forward) or "forward" in readers_of(type(sequence))
    )


def handle_of(model: nn.Module) -> Algm:
    """The handle of a patched model, or of the one patched model in it.

    Raises:
        ValueError: if there is none, or more than one.
    """
    handles = {handle for part in model.modules() if isinstance(handle := part.__dict__.get("algm"), Algm)}
    if not handles:
        raise ValueError(f"{class_name(model)} is not patched. Call apply_algm on it first")
    if len(handles) > 1:
        raise ValueError(f"{class_name(model)} holds {len(handles)} patched models. Pass one of them")
    return handles.pop()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run every module in eval mode and eagerly; afterwards each is in the mode it had, and compiled as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with eagerly(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
