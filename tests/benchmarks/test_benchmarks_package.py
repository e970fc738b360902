"""The package of benchmarks: wings that import one way, and commands and results that its README names."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
FILES = sorted(FOLDER.glob("*/*.py"))
# The wings that each wing may import, besides itself.
BELOW = {
    "common": set(),
    "evaluation": {"common"},
    "cost": {"common", "evaluation", "gpu"},
    "gpu": {"common", "evaluation"},
    "training": {"common", "evaluation"},
    "paper": {"common", "evaluation", "training"},
}
README = (FOLDER / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"`(?:python|accelerate launch) -m (benchmarks\.\w+\.\w+)`", README)))


def imports(path):
    """Yield (level, module, names) of every import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)


def test_wings_import_one_way():
    found = set()
    for path in FILES:
        for level, module, names in imports(path):
            assert not (level == 0 and module.startswith(("benchmarks", "examples", "tests"))), path
            if level == 2:
                wings = {module.split(".")[0]} if module else set(names)
                assert wings <= BELOW[path.parent.name], (path, module)
                found.add(path.parent.name)
    assert found == {wing for wing, below in BELOW.items() if below}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_are_there(command):
    assert callable(import_module(command).main)


def test_every_command_is_in_the_readme():
    runnable = [path for path in FILES if 'if __name__ == "__main__"' in path.read_text()]
    assert {f"benchmarks.{path.parent.name}.{path.stem}" for path in runnable} == set(COMMANDS)


def test_the_results_of_the_readme_are_there():
    links = re.findall(r"\]\((results/.*?)\)", README)
    assert links
    assert all((FOLDER / link).is_file() for link in links)
