"""The patches of `docs/extending.md` fit the package, are short, and what they add works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (An? .+?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
# What must hold after the code of a section has run.
HOLDS = {
    "A backbone": "logits.shape == (len(images), len(shop.classes)) and model.image_encoder.dim == 512",
    "A head": "len(history.epochs) == 2 and history.epochs['loss'].is_monotonic_decreasing"
    " and models.rebuild(model.build_args)(images).shape == (len(images), len(shop.classes))",
    "A background variant": "(grey == images).masked_select(masks).all() and not torch.equal(grey, images)"
    " and (grey.std(1, keepdim=True)[~masks] < 1e-6).all()",
    "An explanation method": "maps.shape == images[:, 0].shape and maps.min() < 0 < maps.max()",
}


def blocks(text, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with every patch of the guide applied, one after the other."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "retailkit", folder / "retailkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name, section in SECTIONS.items():
        (patch,) = blocks(section, "diff")
        (folder / "mine.diff").write_text(patch, encoding="utf-8")
        command, alone = ["git", "apply", "mine.diff"], {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, f"the patch of {name!r} does not fit the package any more: {done.stderr}"
    return folder


def test_the_guide_has_a_recipe_for_each_kind():
    assert list(SECTIONS) == list(HOLDS)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_recipe_is_short(name):
    (patch,) = blocks(SECTIONS[name], "diff")
    added = [line for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert 0 < len(added) < 25


@pytest.mark.slow
def test_what_the_recipes_add_works(copy, tmp_path):
    """One process runs the code of all sections, as importing takes longer than all of them."""
    (shared,) = blocks(TEXT.partition("\n## ")[0], "python")
    script = [f"import retailkit\nassert retailkit.__file__.startswith({str(copy)!r})", shared]
    for name, holds in HOLDS.items():
        script += [*blocks(SECTIONS[name], "python"), f"assert {holds}, {name!r}\nprint({name!r})"]
    (tmp_path / "script.py").write_text("\n".join(script), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(copy), "RETAILKIT_CACHE": str(tmp_path), "RETAILKIT_DEVICE": "cpu"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == list(HOLDS)


def test_the_patched_files_are_formatted(copy):
    files = sorted(set(re.findall(r"^\+\+\+ b/(.+)$", TEXT, re.M)))
    for rule in ("check", "format --check"):
        command = [sys.executable, "-m", "ruff", *rule.split(), "--no-cache", "--config", ROOT / "pyproject.toml"]
        done = subprocess.run([*command, *files], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
