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


def run(command, folder, **environment):
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the package with every patch of the guide applied, one after the other."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "retailkit", folder / "retailkit", ignore=shutil.ignore_patterns("__pycache__"))
    for section in SECTIONS.values():
        (patch,) = blocks(section, "diff")
        (folder / "mine.diff").write_text(patch, encoding="utf-8")
        run(["git", "apply", "mine.diff"], folder, GIT_CEILING_DIRECTORIES=str(folder.parent))
    return folder


def test_the_guide_has_a_short_recipe_for_each_kind():
    assert list(SECTIONS) == list(HOLDS)
    for section in SECTIONS.values():
        assert 0 < len(re.findall(r"^\+(?!\+\+)", *blocks(section, "diff"), re.M)) < 25


@pytest.mark.slow
def test_what_the_recipes_add_works(copy, tmp_path):
    """One process runs the code of all sections, as importing takes longer than all of them."""
    (shared,) = blocks(TEXT.partition("\n## ")[0], "python")
    script = [f"import retailkit\nassert retailkit.__file__.startswith({str(copy)!r})", shared]
    for name, holds in HOLDS.items():
        script += [*blocks(SECTIONS[name], "python"), f"assert {holds}, {name!r}\nprint({name!r})"]
    (tmp_path / "script.py").write_text("\n".join(script), encoding="utf-8")
    where = {"PYTHONPATH": str(copy), "RETAILKIT_CACHE": str(tmp_path), "RETAILKIT_DEVICE": "cpu"}
    said = run([sys.executable, tmp_path / "script.py"], copy, **where)
    assert said.splitlines() == list(HOLDS)


def test_the_patched_files_are_formatted(copy):
    files = sorted(set(re.findall(r"^\+\+\+ b/(.+)$", TEXT, re.M)))
    for rule in ("check", "format --check"):
        command = [sys.executable, "-m", "ruff", *rule.split(), "--no-cache", "--config", ROOT / "pyproject.toml"]
        run([*command, *files], copy)
