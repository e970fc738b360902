"""The files of the repository agree: the hosted checks, the version, the changelog, the citation."""

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path

import yaml

import algm_patch
from algm_patch import __version__, adapters, viz
from tests import versions

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


def commands(job):
    return [step["run"].partition(" #")[0] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def test_the_matrix_has_every_set_of_libraries():
    matrix = WORKFLOW["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert [row["set"] for row in matrix] == list(versions.SETS)
    assert all(versions.SETS[row["set"]].python in (None, row["python"]) for row in matrix)
    (command,) = commands("versions")
    file, *options = command.removeprefix("python ").split()
    assert (ROOT / file).samefile(versions.__file__)
    assert options == ["--slice", "--python", "python", "${{", "matrix.set", "}}"]


def test_every_supported_python_is_run_and_declared():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    declared = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    matrix = WORKFLOW["jobs"]["versions"]["strategy"]["matrix"]["include"]
    assert {row["python"] for row in matrix} == set(declared)
    assert setup["options"]["python_requires"] == f">={declared[0]}"


def test_the_same_checks_run_everywhere():
    """In .ci/run, in the hosted workflow, and before a commit."""
    local = (ROOT / ".ci" / "run").read_text()
    for command in [*commands("lint")[1:], *commands("docs")[1:], *commands("quick")[1:]]:
        assert f".venv/bin/{command}" in local
    checks = {command.removesuffix(" .").removesuffix(" --check") for command in commands("lint")[1:]}
    assert {hook["name"] for hook in HOOKS} == checks


def test_the_documents_are_built_with_what_their_extra_names():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    install = commands("docs")[0].replace("'", "").split()
    assert install == ["python", "-m", "pip", "install", *setup["options.extras_require"]["docs"].split()]


def test_the_reference_has_every_public_name():
    shown = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    public = {*algm_patch.__all__, *viz.__all__, *adapters.__all__, "clap", "gbm", "TokenMap"} - {"__version__"}
    assert sorted(path.rpartition(".")[2] for path in shown) == sorted(public)


def test_the_scripts_are_valid():
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_the_version_is_told_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    releases = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1] == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__
