"""The lists of quick and slow tests: by file, and by a pattern of the test's name with its parameters.

A file is named by its path in tests, without ".py": "adapters/test_contract".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# Modules that tests import and that the extra "dev" does not bring.
HEAVY = {"accelerate", "gradio", "lightning", "matplotlib", "nbclient", "nbformat", "playwright", "skimage"}
HEAVY |= {"torchmetrics", "transformers", "yaml", "tensorboard"}

# Two minutes: the method on tensors, the recorded tensors, the contract in one precision, the main job.
QUICK = {
    "test_contributing": "",
    "test_docstrings": "",
    "adapters/test_contract": r"float32",
    "adapters/test_mutations": r"under_any_path",
    "adapters/test_register": "",
    "core/test_golden": r"_is_the_authors",
    "core/test_matching": "",
    "core/test_merging": r"^(?!test_the_functions_take_an_empty_batch)",
    "core/test_thresholds": "",
    "core/test_token_map": r"^(?!test_whole_numbers)",
    "examples/test_quickstart": r"test_the_main_job$",
    "handle/test_changing_settings": "",
    "handle/test_last_pass": "",
    "handle/test_update": "",
    "patching/test_apply_and_remove": "",
    "patching/test_changed_models": "",
    "patching/test_fixed_counts": r"timm ViT",
    "patching/test_static_shapes": r"timm ViT",
    "settings/test_given_settings": "",
    "settings/test_old_files": "",
    "settings/test_renamed": "",
    "settings/test_settings": "",
    "test_layout": "",
    "test_packaging": "",
    "test_public_names": "",
    "test_repository": "",
}

# What a plain run leaves out, and what stays in it.
SLOW = {
    "adapters/test_contract": {
        r"(bfloat16|autocast).*hybrid|hybrid.*(bfloat16|autocast)": (
            "hybrids in float32; their blocks, which are timm's Block, in every precision"
        ),
        r"(?=.*autocast)(?!.*timm )": "every family in float32 and bfloat16, timm's under autocast too",
    },
    "adapters/test_mutations": {
        r"without_the_weights.*\[(?!MAE)": "MAE-like blocks; every kind with the weights of merged keys",
    },
    "adapters/test_placed": {r"a_compiler": "compilers with known blocks (patching/test_compile)"},
    "benchmarks/test_training_resumed": {
        r"interrupted_at_any.*\[(before the|before weights are in|in the second|while)": "two of the eight moments",
        r"two_processes_killed": "one process, interrupted; two processes (patching/test_distributed)",
    },
    "benchmarks/test_training_benchmark": {
        r"rows_of_table_4d": "each way to train, by itself",
    },
    "cli/test_census": {
        r"test_(timm|transformers)$": (
            "every kind that is patched (test_contract), every kind of refusal (test_find_vit, test_*_refused)"
        ),
    },
    "examples/test_app_page": {
        r"visitors_do_not_mix|the_button|dimmed": "visits in the browser; what they call (examples/test_app)",
    },
    "examples/test_export_script": {
        r"test_the_export": "what it calls, on small models (patching/test_export); that a wrong export is an error",
    },
    "examples/test_notebooks": {
        r"test_every_cell_runs": "the same calls on small models (test_readme, test_tune, test_register)",
    },
    "examples/test_quickstart": {
        r"keep_the_prediction.*\[(?!astronaut|coffee)": "two of the photographs",
    },
    "patching/test_apple": {
        r"every_kind.*\[(?!timm (ViT|EVA-02|BEiT|RoPE, mixed|NaFlex)\]|transformers (DINOv3|BEiT, bias per layer)\])": (
            "one of each kind of positions and of attention"
        ),
    },
    "patching/test_compile": {
        r"test_inductor|is_one_graph.*inductor": "the same graphs, run by the backend eager",
        r"is_one_graph\[(?!timm ViT).*aot": "one family through autograd",
        r"any_content\[(?!timm ViT|transformers DINOv2-default).*-": "every family as one graph, of unlike images",
        r"unlike_images\[(?!timm ViT).*-min": "two families, each image by its own content",
        r"unlike_images\[(?!timm ViT|transformers DINOv2).*-image": "two families, each image by its own content",
        r"fixed_counts.*\[(?!timm ViT|transformers DINOv2)": "two families as one graph of fixed counts",
        r"fixed_counts.*\[(?!timm ViT).*-(whole|static)\]": "one family in each way to ask for it",
        r"behind_a_broken_graph.*\[(?!break_in_hook-2-1)": "a graph that a hook breaks behind the second merge",
        r"other_settings.*(?!'place')(window|key|gbm_tau|proportional)": (
            "the place, as one graph; every setting, eager (patching/test_pairs)"
        ),
    },
    "patching/test_compile_in_use": {
        r"gradients_of_a_batch": "one image's gradients; the packed operator's own",
        r"compile_first.*\[True": "the same with torch.compile(model) in place of model.compile()",
    },
    "patching/test_export": {
        r"\[(?!timm ViT|transformers DINOv2).*-strict\]": "every family, exported without strict; two with it",
        r"test_onnx\[(?!timm ViT|transformers DINOv2)": "two families as ONNX; every family exported",
    },
    "patching/test_newest_pass": {
        r"told_of\[(?!eager|whole-eager)": "an eager and a compiled pass in either order",
        r"leaves_nothing_behind.*-True\]": "the same without strict",
    },
    "patching/test_kept_forwards": {
        r"compiled_module\[True\]": "one that is compiled after the patch is taken away",
    },
    "patching/test_trunks_in_common": {
        r"in_one_graph\[on top\]": "two ViTs beside each other in one graph",
    },
    "patching/test_verbs_in_turn": {
        r"after_the_other\[compile \| (?!calibrate)": "compile, then calibrate; calibrate, tune and panels, compiled",
    },
    "test_segmentation": {
        r"test_processes_share_the_images\[accelerate\]": "the same with torchrun",
    },
    "test_third_party": {
        r"ends_the_run\[(?!a ViT|ends the process)": "a project that is patched, and one that ends its process",
    },
    "test_training_benchmark": {
        r"rows_of_table_4d": "each way to train, by itself",
    },
    "test_training_resumed": {
        r"interrupted_at_any.*\[(before the|before weights are in|in the second|while)": "two of the eight moments",
        r"two_processes_killed": "one process, interrupted; two processes (test_distributed)",
    },
}

UNUSED = pytest.StashKey[list[tuple[str, str]]]()


def mark(items: Iterable[pytest.Item]) -> list[tuple[str, str]]:
    """Mark the quick and the slow tests. Return the entries for these tests' files that fit no test."""
    slow = [(file, pattern) for file, patterns in SLOW.items() for pattern in patterns]
    tiers = {"slow": slow, "quick": list(QUICK.items())}
    files, used = set(), set()
    for item in items:
        if not item.path.is_relative_to(TESTS):  # an example in a docstring of the library
            continue
        file = item.path.relative_to(TESTS).with_suffix("").as_posix()
        files.add(file)
        for tier, entries in tiers.items():
            found = [entry for entry in entries if entry[0] == file and re.search(entry[1], item.name)]
            used.update(found)
            if found:
                item.add_marker(tier)
                break
    return [entry for entries in tiers.values() for entry in entries if entry[0] in files and entry not in used]
