"""The docstrings of the library: plain words, and what the reference in docs/ is built from."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "algm_patch").rglob("*.py"))
# A sentence that begins so is a noun to be puzzled out: "Return whether ..." says it.
RIDDLES = re.compile(r"(How|Of|So|Those|What|Where|Whether|Which|Why|Within)\b")

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def documented(path):
    """Yield every function and class of a file that has a docstring, and the docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            yield node, ast.get_docstring(node)


def parameters(node):
    """Return the names of a function's parameters; of a class's constructor, those of a dataclass being its fields."""
    if isinstance(node, ast.ClassDef):
        fields = {ast.unparse(field.target) for field in node.body if isinstance(field, ast.AnnAssign)}
        return fields.union(*(parameters(method) for method in node.body if getattr(method, "name", "") == "__init__"))
    return {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}


def described(docstring):
    """Return the names that the entries under "Args:" describe; one entry may be of several, "height, width:"."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    entries = re.findall(r"^ {4}(\w[\w, ]*):", section[1], re.MULTILINE) if section else []
    return {name for entry in entries for name in entry.split(", ")}


@every_file
def test_descriptions_are_of_parameters(path):
    wrong = {node.name: described(text) - parameters(node) for node, text in documented(path)}
    assert {name: names for name, names in wrong.items() if names} == {}


@every_file
def test_first_lines_say_what_is_done(path):
    assert [text.splitlines()[0] for _, text in documented(path) if RIDDLES.match(text)] == []


@every_file
def test_examples_have_a_heading(path):
    """Else the reference shows them as quotations."""
    assert [node.name for node, text in documented(path) if ">>>" in text and "Examples:\n" not in text] == []


@every_file
def test_names_are_in_backticks_alone(path):
    """Roles, :func:`such as this one`, are Sphinx's; elsewhere they are noise."""
    assert [node.name for node, text in documented(path) if re.search(r":\w+:`", text)] == []
