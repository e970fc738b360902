"""Which tests are quick and which are slow: by file, and by a pattern of the test's name with its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

# Modules that tests import and that the extra "dev" does not bring.
HEAVY = {"accelerate", "gradio", "lightning", "matplotlib", "nbclient", "nbformat", "skimage", "torchmetrics"}
HEAVY |= {"transformers", "yaml", "tensorboard"}

# Two minutes: the method on tensors, the recorded tensors, the contract in one precision, the main job.
QUICK = {
    "test_contract": r"float32",
    "test_examples": r"test_the_main_job$",
    "test_fixed_counts": r"timm ViT|\bgolden",
    "test_handle": "",
    "test_matching": "",
    "test_merging": "",
    "test_packaging": "",
    "test_register": "",
    "test_settings": "",
    "test_thresholds": "",
    "test_tokens": "",
}

# What a plain run leaves out, and what stays in it.
SLOW = {
    ("test_census", r"test_timm$"): "the contract has every kind that is patched, test_discovery every kind of refusal",
    ("test_notebooks", r"test_every_cell_runs"): "test_readme runs the same calls on small models",
    ("test_contract", r"(bfloat16|autocast).*hybrid|hybrid.*(bfloat16|autocast)"): (
        "hybrids in float32, and their blocks, which are timm's Block, in every precision"
    ),
    ("test_compile", r"test_inductor"): "the same graphs, run by the backend eager",
    (
        "test_compile",
        r"any_content\[(?!timm ViT)|unlike_images\[(?!timm ViT).*-min|fixed_counts.*\[(?!timm ViT).*-(static)?\]",
    ): ("every family as one whole graph, of unlike images and of fixed counts; all ways on a ViT"),
    ("test_compile", r"without_a_whole_graph.*\[(?!timm ViT)"): "a ViT, whose halves are compiled as any other's",
    (
        "test_export",
        r"\[(?!timm ViT|transformers DINOv2).*-strict\]",
    ): "every family, exported without strict; two with it",
    ("test_examples", r"keep_the_prediction.*\[(?!astronaut|coffee)"): "two of the photographs",
    ("test_segmentation", r"test_processes_share_the_images\[accelerate\]"): "the same with torchrun",
}


def mark(items: Iterable[pytest.Item]) -> None:
    for item in items:
        file, name = item.path.stem, item.name
        if any(file == where and re.search(pattern, name) for where, pattern in SLOW):
            item.add_marker("slow")
        elif file in QUICK and re.search(QUICK[file], name):
            item.add_marker("quick")
