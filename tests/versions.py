"""Run the tests on old and new libraries, each set of libraries in a fresh virtual environment.

    python tests/versions.py [--slice] [--python PYTHON] [SET ...]

Without names, every set is run. A full run writes its set's row of benchmarks/results/versions.md and leaves the other
rows as they are, so that the matrix can be run in parts. --slice runs the quick tier only and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "benchmarks" / "results" / "versions.md"
LIBRARIES = ("torch", "torchvision", "timm", "transformers")


@dataclass(frozen=True)
class LibrarySet:
    """Libraries that are installed together.

    Attributes:
        python: the version of Python, such as "3.10"; None: the one that runs this file.
        pins: the version of each library that is not the newest.
    """

    python: str | None = None
    pins: dict[str, str] = field(default_factory=dict)

    def requirements(self) -> list[str]:
        """Return what pip is to install."""
        return [f"{library}=={self.pins[library]}" if library in self.pins else library for library in LIBRARIES]


def pinned(*versions: str) -> dict[str, str]:
    """Return a version for each of LIBRARIES, as far as they are given."""
    return dict(zip(LIBRARIES, versions, strict=False))


SETS = {
    "oldest": LibrarySet("3.10", pinned("2.5.1", "0.20.1", "1.0.17", "4.49.0")),
    "2.6": LibrarySet(None, pinned("2.6.0", "0.21.0", "1.0.22", "5.0.0")),
    "2.9": LibrarySet(None, pinned("2.9.1", "0.24.1", "1.0.22", "4.57.6")),
    "2.14": LibrarySet("3.13", {**pinned("2.14.1", "0.29.1"), "transformers": "5.9.0"}),
    "2.15": LibrarySet(None, pinned("2.15.0", "0.29.2")),
    "newest": LibrarySet(),
}

CONTRACT = "tests/adapters/test_contract.py"

# Tests of what the unpatched model cannot do either in some releases: the library, its versions, the reason, the tests.
IMPOSSIBLE = [
    (
        "timm",
        ("1.0.17", "1.0.22"),
        "mixed rotary angles stay float32",
        [
            f"{CONTRACT}::test_1_the_halves_are_the_block[bfloat16-timm RoPE, mixed]",
            f"{CONTRACT}::test_2_a_permutation_of_the_tokens_changes_nothing[timm RoPE, mixed-bfloat16",
            f"{CONTRACT}::test_3_taps_do_not_change_the_output[bfloat16-timm RoPE, mixed]",
            f"{CONTRACT}::test_4_remove_leaves_no_trace[bfloat16-timm RoPE, mixed]",
            f"{CONTRACT}::test_5_merging_nothing_is_the_original[bfloat16-timm RoPE, mixed]",
        ],
    )
]


def files(pattern: str) -> list[str]:
    """Return the test files that match, as pytest is given them."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern))


# Golden tensors, the adapters' contract, the two libraries that every set has, and the README's first command.
TESTS = [
    "tests/core/test_golden.py",
    "tests/core/test_merging.py",
    "tests/core/test_matching.py",
    CONTRACT,
    *files("tests/adapters/test_timm_*.py"),
    *files("tests/adapters/test_huggingface_*.py"),
    "tests/examples/test_quickstart.py::test_the_main_job",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"one or more of {', '.join(SETS)}; default: all")
    parser.add_argument("--slice", action="store_true", help="the quick tier only; writes no row")
    parser.add_argument("--python", help="the interpreter of every set that is run (default: the set's own, from PATH)")
    options = parser.parse_args()
    unknown = sorted(set(options.sets) - set(SETS))
    if unknown:
        parser.error(f"no set {', '.join(unknown)}: there are {', '.join(SETS)}")
    failed = [name for name in options.sets or SETS if not install_and_test(name, options.python, options.slice)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def install_and_test(name: str, python: str | None, only_quick: bool) -> bool:
    """Install a set in a fresh environment and run the tests there. Return True if they passed."""
    python = python or interpreter(SETS[name].python)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        install = [python, "-m", "pip", "install", "--quiet", *SETS[name].requirements(), "-e", f"{ROOT}[demo,dev]"]
        if subprocess.run(install).returncode:
            print(f"\n== {name}: pip cannot install {' '.join(SETS[name].requirements())}", flush=True)
            return False
        return run_tests(name, python, only_quick)


def interpreter(version: str | None) -> str:
    """Return a Python of a version such as "3.10", on PATH and able to start; for None, the one that runs this file."""
    if version is None:
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        sys.exit(f"No python{version} on PATH that starts: put one there, or name an interpreter with --python")
    return found


def run_tests(name: str, python: str, only_quick: bool) -> bool:
    """Run the tests with an interpreter that has a set installed. Return True if they passed."""
    versions = json.loads(subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout)
    print(f"\n== {name}: {', '.join(f'{library} {version}' for library, version in versions.items())}", flush=True)
    impossible = {
        reason: tests for library, releases, reason, tests in IMPOSSIBLE if versions[library].split("+")[0] in releases
    }
    deselected = [f"--deselect={test}" for tests in impossible.values() for test in tests]
    marker = "quick" if only_quick else ""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [python, "-m", "pytest", "-q", "-n", "auto", "-m", marker, f"--junitxml={report}"]
        passed = subprocess.run([*command, *deselected, *TESTS], cwd=ROOT).returncode == 0
        if report.exists() and not only_quick:
            write_row(name, versions, impossible, ElementTree.parse(report).getroot())
    return passed


VERSIONS = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"Python": platform.python_version(), **{{name: version(name) for name in {LIBRARIES}}}}}))
"""


# -- the table

TITLE = """# Libraries that the tests ran on

Written by `python tests/versions.py`: golden tensors, the adapters' contract, timm, transformers and the quickstart,
each set of libraries in a fresh environment.

"""
COLUMNS = ("set", "Python", *LIBRARIES, "passed", "failed", "skipped", "deselected")


def write_row(
    name: str, versions: dict[str, str], impossible: dict[str, list[str]], report: ElementTree.Element
) -> None:
    """Put a set's row into the table, in place of its old one."""
    rows = dict(old_rows())
    rows[name] = table_row(name, versions, impossible, report)
    order = {listed: i for i, listed in enumerate(SETS)}
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [rows[written] for written in sorted(rows, key=lambda written: order.get(written, len(order)))]
    TABLE.write_text(TITLE + "\n".join(lines) + "\n")


def old_rows() -> list[tuple[str, str]]:
    """Return the rows that the table has, each with the name of its set."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    return [(line.split(" | ")[0].removeprefix("| "), line) for line in lines if line.startswith("| ")][1:]


def table_row(
    name: str, versions: dict[str, str], impossible: dict[str, list[str]], report: ElementTree.Element
) -> str:
    """Return a set's row: its versions, and how many tests passed, failed, were skipped and were left out, and why."""
    cases = list(report.iter("testcase"))
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    reasons = Counter(str(skip.get("message")) for case in cases for skip in case.iter("skipped"))
    skipped = [f"{count}: {reason.replace('|', '/')}" for reason, count in reasons.most_common()]
    left_out = [f"{reason} ({len(tests)} entries of IMPOSSIBLE)" for reason, tests in impossible.items()]
    passed = len(cases) - failed - reasons.total()
    cells = [name, *versions.values(), passed, failed, "; ".join(skipped) or 0, "; ".join(left_out) or 0]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
