"""Check that a ViT has what settings ask for, and still is the one that was patched."""

from __future__ import annotations

from torch import nn

from ..adapters.instance_forward import is_wrapped
from ..adapters.registry import readers_of
from ..settings.settings import Settings
from .find_vit import Vit
from .naming import class_name


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
    if found == blocks:
        return
    pairs = zip(found, blocks, strict=False)
    if len(found) != len(blocks) or not all(block in child.modules() for child, block in pairs):
        raise RuntimeError(
            f"the blocks of {model} are no longer those that apply_algm patched (blocks were replaced, added or "
            "removed). Call apply_algm again"
        )


def runs_in_order(sequence: nn.Module) -> bool:
    """Return whether a sequence of blocks has no forward that might read between them."""
    own = type(sequence).forward
    return not is_wrapped(sequence) and (
        own in (nn.Sequential.forward, nn.ModuleList.forward) or "forward" in readers_of(type(sequence))
    )
