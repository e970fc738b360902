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
TESTS = ["test_contract.py", "test_timm.py", "test_timm_others.py", "test_huggingface.py"]


def main() -> None:
    failed = [name for name in sys.argv[1:] or PAIRS if not run(PAIRS[name])]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run(pair: list[str]) -> bool:
    """Whether the tests pass with these libraries."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pair, "-e", f"{ROOT}[test]"], check=True)
        subprocess.run([python, "-c", VERSIONS], check=True)
        tests = [str(ROOT / "tests" / name) for name in TESTS]
        return subprocess.run([python, "-m", "pytest", "-q", "-n", "auto", *tests], cwd=ROOT).returncode == 0


VERSIONS = """
import platform, timm, torch, transformers
print(f"timm {timm.__version__}, transformers {transformers.__version__}, ", end="")
print(f"torch {torch.__version__}, Python {platform.python_version()}", flush=True)
"""

if __name__ == "__main__":
    main()
