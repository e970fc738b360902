"""Run the adapter contract against the oldest and the newest libraries that are supported, each in a fresh venv.

    python tests/versions.py [oldest] [newest]

Prints, for each pair, what was installed and what pytest says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAIRS = {
    "oldest": ["timm==1.0.17", "transformers==5.17.0"],
    "newest": ["timm", "transformers"],
}
# What the unpatched model of that release cannot do either: timm 1.0.17's mixed rotary angles stay float32.
IMPOSSIBLE = {
    "oldest": [
        "tests/test_contract.py::test_1_the_halves_are_the_block[bfloat16-timm RoPE, mixed]",
        "tests/test_contract.py::test_2_a_permutation_of_the_tokens_changes_nothing[timm RoPE, mixed-bfloat16",
        "tests/test_contract.py::test_3_taps_do_not_change_the_output[bfloat16-timm RoPE, mixed]",
        "tests/test_contract.py::test_4_remove_leaves_no_trace[bfloat16-timm RoPE, mixed]",
        "tests/test_contract.py::test_5_merging_nothing_is_the_original[bfloat16-timm RoPE, mixed]",
    ],
}
TESTS = ["test_contract.py", "test_timm.py", "test_timm_others.py", "test_huggingface.py"]


def main() -> None:
    failed = [name for name in sys.argv[1:] or PAIRS if not run(name)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run(name: str) -> bool:
    """Whether the tests pass with these libraries."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PAIRS[name], "-e", f"{ROOT}[test]"], check=True)
        subprocess.run([python, "-c", VERSIONS], check=True)
        deselected = [f"--deselect={test}" for test in IMPOSSIBLE.get(name, [])]
        tests = [f"tests/{test}" for test in TESTS]
        command = [python, "-m", "pytest", "-q", "-n", "auto", *deselected, *tests]
        return subprocess.run(command, cwd=ROOT).returncode == 0


VERSIONS = """
import platform, timm, torch, transformers
print(f"timm {timm.__version__}, transformers {transformers.__version__}, ", end="")
print(f"torch {torch.__version__}, Python {platform.python_version()}", flush=True)
"""

if __name__ == "__main__":
    main()
