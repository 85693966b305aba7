"""What a reader of the README and the guides types does work, and every link into the repository leads somewhere.

Commands and code of the pages are run from top to bottom in one folder with twenty photos, as a new user would: a later
step may need what an earlier one wrote, so run the whole file. What cannot be run here is listed with its reason.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from PIL import Image

from retailkit import cli, data, runs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RETAILKIT = ".venv/bin/retailkit "
# Commands that are not run here: long ones, and these. Their targets, options and parameters are checked all the same.
LONG = re.compile(r"accelerate launch|--profile full|--cell-seconds|--sweep|--scheduler|path/to/")
NOT_RUN = {
    "make run": "executes every notebook, as tests/test_notebooks.py does",
    "make test": "runs this very test",
    "make check": "runs this very test",
    "make run DATASET=grocery_store": "needs photos that are downloaded",
    "git apply mine.diff": "tests/test_extending.py does",
    "retailkit run 20_training -p PRETRAINED=False": "takes a minute; tests/test_notebooks.py runs it so",
    "retailkit run 20 --dataset folder --root photos": "takes a minute",
    "retailkit fetch grocery_store": "downloads",
    ".venv/bin/python docs/finegrainocr_subset.py FineGrainOCR.zip finegrainocr --per-class 100 50 --long-edge 512": (
        "needs 53.7 GB; tests/data/test_finegrainocr.py runs it on a small zip"
    ),
    "retailkit matrix --dataset folder --root photos.csv --train original --test mixed_same --test mixed_rand": (
        "needs more photos; tests/test_cli.py runs it"
    ),
    "retailkit explain --root photos --checkpoint beef.safetensors --output explanations": (
        "takes a minute; tests/explain/test_split.py explains fewer photos"
    ),
    "retailkit explain --root photos --split test --checkpoint model.safetensors --output explanations": "as above",
    "retailkit matrix --root photos --mode finetune --seeds 5 --jobs 2": (
        "trains ten networks on two classes or more; tests/backgrounds/test_matrix.py sends rows through a pool"
    ),
    "dask scheduler": "serves until it is interrupted",
    "dask worker tcp://10.0.0.5:8786 --nthreads 1 --nworkers 4": "serves, as the one above",
    "retailkit app --dataset folder --root photos": "serves until it is interrupted; tests/test_browser.py opens it",
    "retailkit app --dataset folder --root photos --checkpoint beef.safetensors": "serves, as the one above",
}
PHOTOS = {"EXTRA LEAN": "extra lean beef", "BEEF LEAN": "lean beef", "1.5 %": "milk 1.5 %", "3 %": "milk 3 %"}


def fences(page):
    """Return (language, body) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def steps(page):
    """Return what a reader of a page would type: commands, without comments, and whole blocks of code and tables."""
    for language, body in fences(page):
        if language == "bash":
            lines = re.sub(r"\\\n\s*", "", body).splitlines()
            plain = (re.sub(r"(^|\s)#.*", "", line).strip().replace(RETAILKIT, "retailkit ", 1) for line in lines)
            yield from (("bash", line) for line in plain if line)
        elif language in ("csv", "python") and page.name != "extending.md":  # whose code tests/test_extending.py runs
            yield language, body


STEPS = list(dict.fromkeys(step for page in PAGES for step in steps(page)))
TYPED = [text for kind, text in STEPS if kind == "bash"]
LEFT_OUT = [text for text in TYPED if text in NOT_RUN or LONG.search(text)]
RUN = [step for step in STEPS if step[1] not in LEFT_OUT]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty rendered photos in a folder per class."""
    here = tmp_path_factory.mktemp("reader")
    shop = data.load("synthetic", here / "rendered", per_class=(5, 0, 0), families=2)
    for ending, name in PHOTOS.items():
        (here / "photos" / name).mkdir(parents=True)
        rows = shop.table[shop.table["label"].str.endswith(ending)]
        assert len(rows) == 5
        for n, path in enumerate(rows["image"], start=1):
            with Image.open(path) as image:
                image.convert("RGB").save(here / "photos" / name / f"{n}.jpg", quality=95)
    (here / "new_photos").mkdir()
    other = shop.table[~shop.table["label"].str.endswith(tuple(PHOTOS))]
    for n, path in enumerate(other[other["label"] == other["label"].iloc[0]]["image"].head(3)):
        shutil.copy(path, here / "new_photos" / f"{n}.jpg")
    return here


@pytest.fixture
def call(folder, command, monkeypatch):
    """Call the command in the folder of the photos; returns what it printed."""
    monkeypatch.chdir(folder)

    def run(line):
        code, out, err = command(*shlex.split(line)[1:])
        assert code == 0, f"{line}: {err}"
        return out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind, text", RUN, ids=[f"{n}-{text.splitlines()[0][:60]}" for n, (_, text) in enumerate(RUN)])
def test_what_a_reader_types_works(call, folder, kind, text):
    if kind == "python":
        exec(compile(text, "a block of a guide", "exec"), {})
    elif kind == "csv":
        (folder / "table.csv").write_text(text, encoding="utf-8")
        assert "every row can be read" in call("retailkit check --dataset folder --root table.csv")
    else:
        assert text.startswith("retailkit "), f"{text}: run it here, or list it in NOT_RUN with the reason"
        printed, given = call(text), dict(zip(shlex.split(text), shlex.split(text)[1:], strict=False))
        for option in ("--output", "--predictions"):
            assert option not in given or (folder / given[option]).exists()
        if "evaluate" in text:
            assert "photos are classified correctly; with " in printed


def test_what_is_not_run_is_still_written_somewhere():
    assert NOT_RUN.keys() <= set(TYPED), f"no page has {NOT_RUN.keys() - set(TYPED)} any more"


@pytest.mark.parametrize("command", LEFT_OUT)
def test_what_is_not_run_has_targets_options_and_parameters_that_exist(command):
    program, *words = shlex.split(command)
    if program == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif program == "retailkit":
        name, *words = words
        given = typer.main.get_command(cli.app).commands[name].make_context(name, words).params
        if name == "run":
            for path in runs.notebooks(given["notebooks"]):
                assert runs.changed([path], runs.parse_parameters(given["parameter"] or [])) is not None


def prose(path):
    """Return what a page or a notebook says, without blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(page):
    """Return the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "notebooks").glob("*.ipynb"))], ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        path, _, anchor = link.partition("#")
        if not path.startswith(("http://", "https://")):
            target = (page.parent / path).resolve() if path else page
            assert target.is_relative_to(ROOT) and target.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in anchors(target), f"{link}: no such heading"
    for path in re.findall(r"`((?:retailkit|tests|notebooks|figures|papermill_runs|docs)/[\w./-]*)`", text):
        assert page.suffix == ".ipynb" or (ROOT / path).exists(), f"there is no {path}"


def test_the_glossary_is_in_alphabetical_order():
    terms = re.findall(r"^### (.+)$", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"), re.M)
    assert terms == sorted(terms, key=str.lower)


def test_every_guide_is_linked_from_the_readme():
    text = PAGES[0].read_text(encoding="utf-8")
    assert all(f"(docs/{page.name})" in text for page in PAGES[1:])
