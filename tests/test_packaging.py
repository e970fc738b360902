"""The library imports what setup.cfg declares; without an extra it runs without what the extra brings."""

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "algm_patch").rglob("*.py"))
MODULES = {"pillow": "PIL"}  # packages whose module has another name
OPTIONAL = ("viz", "transformers")  # the extras that the library itself knows of


def modules(requirements):
    """Return the modules that the packages of a list of requirements bring."""
    names = re.findall(r"^[\w-]+", requirements, re.MULTILINE)
    return {MODULES.get(name, name) for name in names}


def declared():
    """Return the modules of install_requires, and those of the extras."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    extras = (parser["options.extras_require"][name] for name in OPTIONAL)
    return modules(parser["options"]["install_requires"]), set().union(*map(modules, extras))


def imported(node, at_top):
    """Yield the top-level names of the modules that a tree of code imports, without those for type checkers.

    at_top: leave out what functions import when they are called.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield child.module.partition(".")[0]
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        elif not (at_top and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))):
            yield from imported(child, at_top)


def foreign(path, at_top):
    names = set(imported(ast.parse(path.read_text()), at_top))
    return names - sys.stdlib_module_names - {"algm_patch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_declared(path):
    core, optional = declared()
    assert foreign(path, at_top=True) <= core
    assert foreign(path, at_top=False) <= core | optional


def test_what_is_declared_is_imported():
    core, optional = declared()
    assert core | optional == set().union(*(foreign(path, at_top=False) for path in FILES))


BARE = """
import sys
sys.modules.update(dict.fromkeys({absent}))  # an import of these raises ModuleNotFoundError
import timm, torch
import algm_patch.__main__
from algm_patch import apply_algm, visualize

model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=64).eval()
image = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    apply_algm(model, clap_layer=1, gbm_layers=[2])(image)
print(model.algm)
try:
    visualize(model, image[0])
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_library_runs_without_its_extras():
    _, optional = declared()
    ran = subprocess.run(
        [sys.executable, "-c", BARE.format(absent=sorted(optional))], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "tokens after each layer" in ran.stdout
    assert "pip install 'algm_patch[viz]'" in ran.stdout
