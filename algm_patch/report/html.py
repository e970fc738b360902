"""A patched model's handle as a small page of HTML, for notebooks in light and dark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from ..patching.forward_pass import ForwardPass
from ..settings import Settings
from .text import no_pass, patches_per_layer, summary

BLUE = "#3f90da"
HEIGHT = 60  # of the bars in pixels
STYLE = (
    "display:inline-block;border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:10px 14px;"
    "font:13px/1.5 system-ui,sans-serif"
)
COLUMN = "width:26px;text-align:center;font-size:10px"
BACKDROP = f"height:{HEIGHT}px;background:rgba(128,128,128,.25);display:flex;align-items:flex-end"


def report(title: str, settings: Settings, past: ForwardPass | None, saved: Callable[[], str]) -> str:
    """Return a card of settings and the last forward pass; see `algm_patch.report.text.report`."""
    if past is None or not past.blocks:
        return card(title, summary(settings), [no_pass(past)], [], 0)
    height, width = past.grid
    facts = [f"last forward pass: batch {past.batch}, grid {height}×{width} + {past.num_prefix_tokens} prefix", saved()]
    return card(title, summary(settings), facts, patches_per_layer(past), height * width)


def reports(each: Mapping[str, str]) -> str:
    """Return the cards of several ViTs below each other, from those of each by its path."""
    return "".join(f"<div>{escape(path)}</div><div>{its}</div>" for path, its in each.items())


def card(title: str, settings: Sequence[tuple[str, str]], facts: Sequence[str], bars: Sequence[int], whole: int) -> str:
    """Return HTML without scripts or style sheets, whose text takes the colour of what is around it.

    Args:
        settings: names and values.
        facts: lines on the last forward pass.
        bars: the patch tokens that each layer left; none: no chart.
        whole: how many there would be without merging.
    """
    rows = "".join(
        f'<div style="opacity:.7">{escape(name)}</div><div>{escape(value)}</div>' for name, value in settings
    )
    table = f'<div style="display:grid;grid-template-columns:max-content 1fr;column-gap:14px;margin:4px 0">{rows}</div>'
    lines = "".join(f"<div>{escape(fact)}</div>" for fact in facts)
    return f'<div style="{STYLE}"><b>{escape(title)}</b>{table}{chart(bars, whole) if bars else ""}{lines}</div>'


def chart(bars: Sequence[int], whole: int) -> str:
    """Return a bar for each layer before a backdrop of how high it would be; numbers where they change."""
    columns = []
    for layer, count in enumerate(bars, 1):
        label = str(count) if layer == 1 or count != bars[layer - 2] else "&nbsp;"
        bar = f'<div style="width:100%;height:{round(HEIGHT * count / whole)}px;background:{BLUE}"></div>'
        title = f"layer {layer}: {count} of {whole} patches"
        columns.append(f'<div title="{title}" style="{COLUMN}">{label}<div style="{BACKDROP}">{bar}</div>{layer}</div>')
    return f'<div style="display:flex;gap:2px;margin:6px 0">{"".join(columns)}</div>'
