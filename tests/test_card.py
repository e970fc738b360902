"""A handle as notebooks show it, and the count of operations on it."""

import re
from html.parser import HTMLParser

import pytest
import torch
from models import build, photo
from test_contract import CASES
from torch.utils.flop_counter import FlopCounterMode

from algm_patch import apply_algm
from algm_patch.card import card

# Whose attention is more than the products of queries, keys and values: counted without that.
ABOUT = ("differential attention", "relative positions")


def counted(case, model, image):
    with FlopCounterMode(display=False) as counter:  # with gradients: without, torch's own attention is not counted
        case.tokens(model, image)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", CASES)
def test_what_merging_saves_is_what_torch_counts(name):
    case = CASES[name]
    model, image = case.build(), case.image()[:1]
    model.eval()
    unpatched = counted(case, model, image)
    apply_algm(model, clap_layer=1, gbm_layers=[], tau=0.5)  # GBM's own products would be counted too
    merging = counted(case, model, image)
    assert merging < unpatched
    without, found = model.algm._gflops()
    tolerance = 0.1 if any(kind in name for kind in ABOUT) else 1e-6
    assert without - found == pytest.approx(unpatched - merging, rel=tolerance)
    assert without <= unpatched * (1 + 1e-9)


def test_operations_of_a_batch_are_those_of_its_images():
    model = apply_algm(build("ViT").eval(), gbm_layers=[3], tau=0.8)
    images = photo(batch=3)
    with torch.no_grad():
        alone = []
        for image in images:
            model(image[None])
            alone.append(model.algm._gflops()[1])
        model(images)
    assert len(set(alone)) > 1
    assert model.algm._gflops()[1] == pytest.approx(sum(alone) / 3)


class Checked(HTMLParser):
    """Every element that opens closes, in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text = [], []
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
    for part in ("ALGM on VisionTransformer", "layer 3, 5", "tau 0.5", "batch min", "grid 6×5 + 1 prefix", "× fewer"):
        assert part in text
    counts = model.algm.tokens_per_layer
    heights = [int(found) for found in re.findall(r"width:100%;height:(\d+)px", html)]
    assert heights == [round(60 * count / 31) for count in counts]
    assert "<script" not in html


def test_what_users_name_is_text():
    assert "<b>a & b</b>" in Checked(card("<b>a & b</b>", [("<i>", "<u>")], ["<s>"], [3], 4)).text
