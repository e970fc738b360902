"""The rooms of the library: which may import which, what stays in its file, how long a file may be."""

import ast
import re
from graphlib import TopologicalSorter
from itertools import dropwhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "algm_patch").rglob("*.py"))
OTHERS = [path for folder in ("tests", "benchmarks", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = [path for path in OTHERS if path.is_relative_to(ROOT / "tests")]

# A wing may import from itself and from the wings above it, never from its neighbours in a line.
ORDER = """
_version files warning
deprecated
core
settings adapters functional
patching
report
handle
trunks
apply
images
tuning
viz
cli
__init__ __main__
"""
RANKS = {wing: rank for rank, line in enumerate(ORDER.split("\n")) for wing in line.split()}
# What functions may import when they are called: packages of extras, and those that take long to import.
LAZY = {"IPython", "PIL", "matplotlib", "skimage", "timm", "transformers"}
PRIVATE = re.compile(r"_(?!_)\w*[^_]")  # neither __special__ nor IPython's _repr_html_
FOREIGN = {"_attn_implementation", "_check"}  # of transformers and torch; set, or named alike, in files of ours
BY_NAME = {"getattr", "setattr", "hasattr", "delattr"}  # monkeypatch.setattr too
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
IMPORT = (ast.Import, ast.ImportFrom)

every_file = pytest.mark.parametrize("path", LIBRARY + OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
library_file = pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))


def dotted(path):
    """Return the name of the module that a file is, such as "algm_patch.core.matching"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path) for path in LIBRARY + OTHERS}


def wing(module):
    """Return the part of a module's name that ORDER lists; "__init__" for the package itself."""
    return [*module.split("."), "__init__"][1]


def imported(path, nodes):
    """Return the full names of the modules that these nodes of a file's code import."""
    package = path.relative_to(ROOT).parent.parts
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            members = {f"{module}.{alias.name}" for alias in node.names} & MODULES
            names.update(members or {module})
    return names


def imports(path):
    return imported(path, ast.walk(ast.parse(path.read_text())))


@library_file
def test_imports_go_one_way(path):
    here = wing(dotted(path))
    assert here in RANKS, f"ORDER does not say what {here} may import"
    allowed = {other for other, rank in RANKS.items() if rank < RANKS[here]} | {here}
    if here == "functional":
        allowed = {"core", here}
    assert {name for name in imports(path) & MODULES if wing(name) not in allowed} == set()


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({dotted(path): imports(path) & MODULES for path in LIBRARY}).prepare()


@every_file
def test_imports_stand_above_the_first_definition(path):
    body = ast.parse(path.read_text()).body
    behind = dropwhile(lambda node: not isinstance(node, DEFINITION), body)
    assert [ast.unparse(node) for node in behind if isinstance(node, IMPORT)] == []


@library_file
def test_functions_import_only_what_is_optional_or_slow(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DEFINITION)]
    found = set().union(*(imported(path, ast.walk(function)) for function in functions))
    assert {name for name in found if name.partition(".")[0] not in LAZY} == set()


@every_file
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 250


def private_names(path):
    """Return the private names that a file defines, those that it puts on other objects, and those that it uses."""
    defined, put, used = set(), set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                defined.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.keyword(arg=str(name)):
                put.add(name)
            case ast.Dict(keys=keys):
                put.update(key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str))
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.ImportFrom(names=aliases):
                used.update(alias.name for alias in aliases)
            case ast.Call(
                func=ast.Name(id=function) | ast.Attribute(attr=function), args=[_, ast.Constant(str(name)), *_]
            ) if function in BY_NAME:
                (put if function == "setattr" else used).add(name)
    return [{name for name in names if PRIVATE.fullmatch(name)} - FOREIGN for names in (defined, put, used | put)]


@pytest.fixture(scope="module")
def homes():
    """By private name, the files that define it or, if none does, put it on objects. Other libraries' have none."""
    defining: dict[str, set[Path]] = {}
    putting: dict[str, set[Path]] = {}
    for path in LIBRARY + OTHERS:
        defined, put, _ = private_names(path)
        for names, homes in ((defined, defining), (put, putting)):
            for name in names:
                homes.setdefault(name, set()).add(path)
    return {**putting, **defining}


@every_file
def test_private_names_stay_in_their_file(path, homes):
    _, _, used = private_names(path)
    elsewhere = {name: homes[name] for name in used if path not in homes.get(name, {path})}
    assert elsewhere == {}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_a_test(path):
    assert {name for name in imports(path) if name.rpartition(".")[2].startswith("test_")} == set()


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_found_by_changing_the_path(path):
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    allowed = path.name == "third_party.py"  # makes checkouts importable that are no packages
    assert [node.lineno for node in nodes if ast.unparse(node) == "sys.path" and not allowed] == []
