"""A handle as notebooks show it."""

import re
from html.parser import HTMLParser

import torch

from algm_patch import apply_algm
from algm_patch.report.html import card
from tests.support.models import build, photo


class Checked(HTMLParser):
    """Parses HTML, and asserts that every element that opens closes, in order."""

    def __init__(self, html):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_card_shows_settings_tokens_operations_and_grid():
    model = apply_algm(build("ViT").eval(), gbm_layers=[3, 5], tau=0.5, batch="min")
    assert "no forward pass yet" in Checked(model.algm._repr_html_()).text
    with torch.no_grad():
        model(photo())
    html = model.algm._repr_html_()
    text = " ".join(Checked(html).text)
    for part in ("ALGM on VisionTransformer", "layer 3, 5", "tau 0.5", "batch min", "grid 6×5 + 1 prefix"):
        assert part in text
    merging, without = model.algm.gflops, model.algm.unpatched_gflops
    saved = f"{merging:.3g} of {without:.3g} GFLOPs of the ViT an image: {1 - merging / without:.0%} fewer"
    assert saved in text
    assert saved in repr(model.algm)
    counts = model.algm.tokens_per_layer
    heights = [int(found) for found in re.findall(r"width:100%;height:(\d+)px", html)]
    assert heights == [round(60 * (count - 1) / 30) for count in counts]
    assert "<script" not in html


def test_what_users_name_is_text():
    assert "<b>a & b</b>" in Checked(card("<b>a & b</b>", [("<i>", "<u>")], ["<s>"], [3], 4)).text
