"""Rules of the house that a reader would otherwise have to remember."""

import ast
import base64
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retailkit.runs.report import IMAGE_DATA

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "retailkit"
SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
# Data flows down: a room imports only rooms above it. Rooms of one line may import one another.
ROOMS = """
config | cache | cluster | data | models | losses metrics | calibration | inference | training | recipes answers |
backgrounds detection | explain | plots | widgets | runs | export comparison audit | cli | __main__
"""
LEVEL = {room: level for level, rooms in enumerate(ROOMS.split("|")) for room in rooms.split()}
# Tools of notebooks, plots and runs: nothing that computes may need them.
TOOLS = {"widgets": "ipywidgets anywidget", "runs": "voila papermill nbformat", "cli": "typer", "explain": "captum",
         "cluster": "dask distributed"}  # fmt: skip
OWNER = {tool: room for room, tools in TOOLS.items() for tool in tools.split()}
REGISTRY_HOST = re.compile(r"\b(?:pypi\.org|files\.pythonhosted\.org|index-url|find-links|artifactory|nexus)\b")
LINES, FUNCTION_LINES = 500, 60
HABITS = {r"\.cuda\(": "use config.device()", r"np\.random\.seed\(|^\s*random\.seed\(": "pass a seed or a generator",
          r"plt\.show\(": "return what is drawn"}  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|opt|tmp)/[\w.-]+")


def tracked(*patterns):
    """Files that git knows or would add."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "--", *patterns]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def imports(source):
    """Dotted names that a source imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def broken_imports(own, source):
    """What a source of room `own` must not import."""
    names = [name.split(".") for name in imports(source)]
    inner = {parts[1] for parts in names if parts[0] == "retailkit" and len(parts) > 1 and parts[1] in LEVEL}
    above = {name for name in inner if LEVEL[name] > LEVEL[own]}
    return above | {tool for tool, *_ in names if OWNER.get(tool, own) != own}


def test_a_room_imports_only_rooms_above_it():
    for path, source in SOURCES.items():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            assert not list(imports(source))
            continue
        assert own in LEVEL, f"{own}: a new room; give it a place in ROOMS"
        assert not broken_imports(own, source), path


def test_the_rule_of_imports_can_fail():
    assert broken_imports("models", "from retailkit import plots, config") == {"plots"}
    assert broken_imports("data", "def f():\n    import retailkit.training.x") == {"training"}
    assert broken_imports("training", "import papermill.execute") == {"papermill"}
    assert not broken_imports("training", "from retailkit.models import build")


def test_imports_of_files_go_one_way():
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}

    def module(name):
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    graph = {name: {*map(module, imports(SOURCES[path]))} - {"", "retailkit"} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 100
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the files of a cycle


def test_sources_are_short_and_keep_the_habits():
    for path, text in SOURCES.items():
        assert text.count("\n") <= LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{path} {node.name}"
        assert path.stem not in {"utils", "util", "common", "helpers", "misc"}
        for habit, cure in HABITS.items():
            assert not re.search(habit, text, re.M), f"{path}: {cure}"


def loaded_by(module):
    """What a fresh Python has loaded after an import of a module (and what follows it)."""
    script = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_and_the_command_answer_without_the_heavy_libraries(monkeypatch):
    monkeypatch.setenv("RETAILKIT_DEVICE", "cpu")
    assert loaded_by("retailkit") == {"retailkit"}
    device = "retailkit.cli; from retailkit import config; assert config.device() == 'cpu'"
    assert not loaded_by(device) & {"torch", "pandas", "transformers", "papermill"}
    assert not loaded_by("retailkit.widgets") & {"torch", "sklearn", "seaborn"}  # explorers show figures


def test_no_path_of_one_machine_and_no_registry_in_tracked_files():
    for path in tracked("*.py", "*.md", "*.yml", "*.yaml", "*.toml", "*.json", "*.ipynb", "Makefile", ".ci/*", "*.j2"):
        text = re.sub(r'"image/(?:png|jpeg)": "[^"]*"', "", path.read_text(encoding="utf-8"))
        for pattern in (MACHINE_PATH, REGISTRY_HOST):
            found = pattern.search(text)
            assert not found or path == Path(__file__), f"{path}: {found[0]}"


def test_committed_files_are_small():
    for path in tracked("papermill_runs/*"):
        assert path.stat().st_size < (1_000_000 if path.suffix == ".ipynb" else 200_000), path.name
    for path in tracked("figures/*", "docs/*"):
        assert path.stat().st_size < 200_000, path.name


def test_every_figure_can_be_traced_to_its_run():
    pictures = {path.name for path in tracked("figures/*") if path.name != "index.json"}
    index = ROOT / "figures" / "index.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    assert pictures == set(known)
    for name, entry in known.items():
        record = json.loads((ROOT / "papermill_runs" / entry["run"] / f"{entry['notebook']}.json").read_text())
        assert any(name.endswith(f["file"]) and not f["photos"] for f in record["figures"]), name


def test_committed_records_are_finished_and_hold_no_photos():
    for path in tracked("papermill_runs/*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["status"] == "ok" and "ROOT" not in record["parameters"], path
    charts = {base64.b64encode(path.read_bytes()).decode() for path in tracked("figures/*.png", "figures/*.jpg")}
    for path in tracked("papermill_runs/*.ipynb"):
        if not path.parent.name.endswith("-synthetic"):
            text = path.read_text(encoding="utf-8")
            only_charts = set(IMAGE_DATA.findall(text)) <= charts and '"image/' not in text
            assert only_charts, f"{path}: may show photos of others"


def test_hooks_and_workflow_are_well_formed():
    import yaml

    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "nbstripout"]
    assert "--keep-id" in hooks[2]["entry"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step.get("run") for step in workflow["jobs"]["workbook"]["steps"]]
    assert ".ci/run" in commands and "make run" in commands
    assert "make test" in (ROOT / ".ci/run").read_text()


ECHO = 'echo "$@"\n[ "$1" = venv ] && mkdir -p .venv/bin && exit 0\nexit 1'
NO_PYTHON = dict.fromkeys(("python3", *(f"python3.{minor}" for minor in range(11, 15))), "exit 1")
MADE = [  # what is asked for, the tools that are there, and what make prints
    ((), NO_PYTHON, "Python 3.11 or newer is needed"),
    (("TORCH=cpu",), {"uv": ECHO}, "--torch-backend cpu"),
    (("RESOLUTION=lowest-direct",), {"uv": ECHO}, "--resolution lowest-direct"),
    (("CONSTRAINTS=some.txt",), {"uv": ECHO}, "-c some.txt"),
    (("PYTHON=python3.99",), {"uv": ECHO, "python3.99": "exit 0"}, "python3.99 .venv"),
    (("PYTHON=python3.98",), {}, "python3.98 was not found"),
    (("TORCH=cpu",), {}, "TORCH=cpu needs uv"),
    (("RESOLUTION=lowest",), {}, "RESOLUTION=lowest needs uv"),
]


@pytest.mark.parametrize("words, tools, says", MADE, ids=[says for *_, says in MADE])
def test_the_makefile_hands_on_what_is_asked_for_or_says_what_is_missing(tmp_path, words, tools, says):
    """In an empty folder, where `tools` are found first. Whatever breaks the install, no stamp says that it is done."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bin").mkdir()
    for name, script in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    python = [Path(sys.executable).parent] if "PYTHON=python3.98" in words or "python3" in tools else []
    where = {"PATH": ":".join(map(str, [tmp_path / "bin", *python, "/usr/bin", "/bin"]))}
    done = subprocess.run(["make", "test", *words], cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode != 0 and says in done.stdout + done.stderr
    assert (tmp_path / ".venv").is_dir() == ("uv" in tools) and not (tmp_path / ".venv/.ready").exists()
    assert ("--torch-backend" in done.stdout) == (says == "--torch-backend cpu")
