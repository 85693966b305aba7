"""Ways to install: what is declared, the versions that were tested, the wheel, and what the workflows call."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from retailkit import cli

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
HANDED_ON = {"PYTEST_ADDOPTS"}  # variables of workflows that other programs than make read
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PYPI_NAMES = {"pytorch": "torch", "opencv": "opencv-python-headless"}
# transformers, ipykernel and voila themselves need these, and are of no use without them.
NEEDED_BY = {
    "transformers": {"huggingface_hub", "tokenizers"},
    "ipykernel": {"IPython", "jupyter_client", "matplotlib_inline", "traitlets"},
    "voila": {"jupyter_server", "tornado"},
}
COMES_WITH = {module: name for name, modules in NEEDED_BY.items() for module in modules}


def pinned(lines):
    """Requirement lines -> name to specifier."""
    read = (Requirement(line) for line in lines)
    return {PYPI_NAMES.get(r.name, r.name): str(r.specifier) for r in read}


def test_conda_users_get_the_names_and_ranges_of_the_project():
    plain = [d for d in CONDA["dependencies"] if isinstance(d, str) and d != "pip"]
    by_pip = next(d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
    ours = pinned(plain) | pinned(d for d in by_pip if not d.startswith("-e"))
    assert ours.pop("python") == str(Requirement(f"python{PROJECT['requires-python']}").specifier)
    assert ours == pinned(PROJECT["dependencies"])
    assert by_pip[-1] == "-e .[offline,dev]" and CONDA["channels"] == ["conda-forge"]


def imported(nodes):
    """Names of the modules that some nodes of a source file import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_import_of_the_package_is_a_dependency():
    """One that may fail, since a message follows, may be of an extra."""
    named, optional = (
        {canonicalize_name(name) for lines in groups for name in pinned(lines)}
        for groups in ([PROJECT["dependencies"]], PROJECT["optional-dependencies"].values())
    )
    holds = metadata.packages_distributions()
    for path in (ROOT / "retailkit").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        tried = [node for node in nodes if isinstance(node, ast.Try) and "ImportError" in ast.unparse(node.handlers)]
        may_fail = set(imported(part for node in tried for part in node.body))
        for module in set(imported(nodes)) - sys.stdlib_module_names - {"retailkit"}:
            names = [COMES_WITH[module]] if module in COMES_WITH else holds.get(module, [module])
            known = named | (optional if module in may_fail else set())
            assert {canonicalize_name(name) for name in names} & known, f"{path.name} imports {module}"


@pytest.fixture(scope="module")
def constraints():
    """The script that writes them."""
    spec = importlib.util.spec_from_file_location("constraints", ROOT / "docs" / "constraints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_constraints_are_exact_versions_of_all_that_is_needed(constraints):
    comment, *lines = CONSTRAINTS
    assert comment.startswith("# ") and "`make constraints`" in comment
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*==\d[\w.]*", line) for line in lines), "no builds and addresses"
    known = dict(line.split("==") for line in lines)
    assert list(known) == sorted(known) and len(known) == len(lines) and "retailkit" not in known
    for asked in constraints.declared():
        version = known.get(canonicalize_name(asked.name))
        assert version, f"{asked.name}: run make constraints"
        assert asked.specifier.contains(version), f"{asked}: constraints.txt has {version}; run make constraints"
    if constraints.where() not in comment:
        pytest.skip("they were written on another Python or system, where other packages are needed")
    if os.environ.get("RESOLUTION"):
        pytest.skip("make installed older versions, which need other packages")
    assert set(constraints.needed()) <= set(known), "run make constraints"


def test_needed_packages_are_followed_through_their_dependencies(constraints, monkeypatch):
    asks = {"a": ["B[more]>1", "never; python_version < '3'"], "b": ["c; extra == 'more'", "d; extra == 'other'"]}
    monkeypatch.setattr(constraints, "declared", lambda: [Requirement("a")])
    monkeypatch.setattr(constraints.metadata, "requires", lambda name: asks.get(name))
    monkeypatch.setattr(constraints.metadata, "version", lambda name: "1.2+cu130")
    assert constraints.needed() == {"a": "1.2", "b": "1.2", "c": "1.2"}


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    pytest.importorskip("setuptools", reason="setuptools builds the wheel")
    hidden = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "retailkit", tmp_path / "retailkit", ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("retailkit/")}
    files = [path for path in (ROOT / "retailkit").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    ours = {path.relative_to(ROOT).as_posix() for path in files if not path.name.startswith(".")}
    assert held == ours and any(not name.endswith(".py") for name in held)


def steps():
    """Yield each command of a workflow, and the variables that it gets."""
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        for job in workflow["jobs"].values():
            for step in job["steps"]:
                assert ("uses" in step) != ("run" in step), f"{path.name}: {step}"
                if "uses" in step:
                    assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step["uses"]
                    continue
                given = {**workflow.get("env", {}), **job.get("env", {}), **step.get("env", {})}
                yield from ((path.name, line, given) for line in step["run"].splitlines())


@pytest.mark.parametrize("name, command, given", list(steps()), ids=lambda value: str(value)[:40])
def test_commands_of_workflows_exist_and_read_the_variables_that_they_get(name, command, given):
    program, *words = shlex.split(command)
    variables = set(re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.M)) | HANDED_ON
    asked = {word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)} | set(given)
    assert asked <= variables, f"{name}: the Makefile has no {asked - variables}"
    if program == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program.endswith("retailkit"):
        typer.main.get_command(cli.app).commands[words[0]].make_context(words[0], words[1:])
    else:
        assert program.startswith(".") and (ROOT / program).is_file(), f"{name}: {command}"


def test_the_jobs_cover_the_systems_and_versions_that_are_promised():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest"] and matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {entry["os"] for entry in matrix["include"]} == {"ubuntu-latest", "macos-latest"}
    assert [entry["resolution"] for entry in matrix["include"] if "resolution" in entry] == ["lowest-direct"]
    assert jobs["workbook"]["env"]["CONSTRAINTS"] == "constraints.txt"
