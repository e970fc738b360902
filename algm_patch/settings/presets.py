"""The layers of CLAP and GBM in the paper, by network (supplement, Tab. 1)."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any


class Presets(dict[str, MappingProxyType[str, Any]]):
    def __missing__(self, name: str) -> MappingProxyType[str, Any]:
        raise KeyError(f"no preset {name!r}. There are: {', '.join(self)}")


def layers(clap_layer: int, gbm_layers: tuple[int, ...]) -> MappingProxyType[str, Any]:
    return MappingProxyType({"clap_layer": clap_layer, "gbm_layers": gbm_layers})


# As in apply_algm(model, **presets["segmenter-vit-l"]). Layers only: the paper takes thresholds from the data (§3.3).
presets = Presets(
    {
        "segmenter-vit-t": layers(1, (5,)),
        "segmenter-vit-s": layers(1, (5,)),
        "segmenter-vit-b": layers(1, (5,)),
        "segmenter-vit-l": layers(1, (7,)),
        "segvit-vit-l": layers(1, (12,)),
        "setr-vit-b": layers(1, (5,)),
        "setr-vit-l": layers(1, (13,)),
        "eva-vit-g": layers(1, (11, 21, 31)),
    }
)
