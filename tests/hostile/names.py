"""Texts that are programs somewhere: names on pages and in tables, parameters of notebooks, environment variables."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

from hostile import door, put
from hostile.files import header
from hostile.tables import RECORD

PAGE, FORMULA, MARKDOWN = "<img src=x onerror=alert(1)>", "=cmd()", "](javascript:alert(1)) | `x` <b>"
NAMES = {"a page": PAGE, "an attribute": '" onerror="alert(1)', "a formula": FORMULA, "Markdown": MARKDOWN}
LATEX, CONTROL = r"a}\input{x} $5 100% & #_^~", "a\x1b[2J\0\x08b"
ALL = {name: (text, None) for name, text in (NAMES | {"LaTeX": LATEX, "control characters": CONTROL}).items()}


class Active(HTMLParser):
    """Finds what a page would run."""

    def handle_starttag(self, tag, attributes) -> None:
        for name, value in attributes:
            assert not (name.startswith("on") and "alert" in f"{name}{value}"), f"{tag} {name}={value}"
            assert not (name in ("src", "href") and "javascript" in str(value)), f"{tag} {name}={value}"


def harmless(page: str) -> str:
    reader = Active()
    reader.feed(page)
    reader.close()
    return "shown as text"


def no_formula(table: str) -> str:
    cells = [cell for line in table.splitlines() for cell in re.split('[,;\t"]', line)]
    assert not [cell for cell in cells if cell.lstrip().startswith(tuple("=+@"))], cells
    return "no formula"


def plain_markdown(page: str) -> str:
    assert "<img" not in page and "](javascript" not in page.replace("\\]", ""), page
    assert not re.search(r"(?<!\\)\|.*(?<!\\)`x`", page)
    return "shown as text"


CHECKS = {".html": harmless, ".csv": no_formula, ".md": plain_markdown}
COMMANDS = {  # and what each writes
    "explain": ("explain {photo} --checkpoint m.safetensors --budget 8 --output e.html", "e.html"),
    "predict": ("predict {photo} --checkpoint m.safetensors --output p.csv", "p.csv"),
    "evaluate": ("evaluate --root photos --checkpoint m.safetensors --predictions v.csv", "v.csv"),
    "compare": ("compare m.safetensors n.safetensors --root photos --html c.html --csv c.csv", "c.html"),
    "export": ("export --root photos --checkpoint m.safetensors --output shop", "shop/card.md"),
    "check --deep": ("check --root photos --deep --output d.html", "d.html"),
}
WRITTEN = {f"{name}, {command}": ((label, command), None) for name, label in NAMES.items() for command in COMMANDS
           if name != "an attribute" or command != "export"}  # fmt: skip


@door("name of a class", WRITTEN, [name for name in WRITTEN if not name.endswith((" predict", " explain"))])
def written(shop, case) -> str:
    """The page or table that a command writes where a class has a name."""
    label, command = case.given
    line, file = COMMANDS[command]
    (shop.folder / "photos" / "milk").rename(shop.folder / "photos" / label)
    header("build", "classes", value=[label, "soup"])(shop.folder / "m.safetensors")
    (shop.folder / "n.safetensors").write_bytes((shop.folder / "m.safetensors").read_bytes())
    code, _, err = shop.call(*(word.format(photo=f"photos/{label}/0.png") for word in line.split()))
    assert code == 0, err
    path = shop.folder / file
    return f"{path.name}: {CHECKS[path.suffix](path.read_text(encoding='utf-8'))}"


@door("name in a record", ALL)
def record_tables(shop, case) -> str:
    """The CSV and LaTeX of the tables in a record."""
    from retailkit import runs

    (shop.folder / "notebooks").mkdir()
    table = {"columns": [case.given, "n"], "data": [[case.given, 1]]}
    content = RECORD | {"tables": {case.given: table, f"../../{case.given}": table}}
    put(shop.folder / "papermill_runs" / "latest" / "fast-synthetic" / "20_training.json", json.dumps(content))
    paths = runs.write_tables("tables")
    assert all(path.parent == Path("tables") and path.is_file() for path in paths) and len(paths) == 4
    latex = "".join(path.read_text() for path in paths if path.suffix == ".tex")
    assert r"\input" not in latex and not re.search(r"(?<!\\)[$%#]", latex), latex
    return f"{len(paths)} files in their folder"


@door("error of a run", ALL)
def summary(shop, case) -> str:
    """What CI shows of a run: Markdown and JUnit XML."""
    from xml.etree import ElementTree

    from retailkit.runs import report

    failed = SimpleNamespace(notebook="20_training", seconds=1.0, status="failed", error=case.given, name="20_training")
    report.append_summary(shop.folder / "s.md", "fast-synthetic", [failed], [])
    (row,) = [line for line in (shop.folder / "s.md").read_text().splitlines() if line.startswith("| 20_training")]
    assert row.count("|") == 4 and "<img" not in row and "\x1b" not in row, row
    report.write_junit(shop.folder / "j.xml", "fast-synthetic", [failed], [])
    assert ElementTree.parse(shop.folder / "j.xml").find(".//failure") is not None
    return "one row of Markdown, sound XML"


@door("name in the tool", ALL)
def tool(shop, case) -> str:
    """What the tool shows."""
    import pandas as pd

    from retailkit.widgets import layout, page

    name = case.given
    table = page.table(pd.DataFrame({name: [name]}))
    section = page.Section(name, [name], [page.Image(b"", name, name)], [table])
    return harmless(page.fragment(section) + layout.problem(name))


FILES = {"a formula": "=cmd().png", "an option": "./--force.png", "a mark": "@a.png", "a page": "<img src=x>.png"}


@door("name of a photo", {name: (file, None) for name, file in FILES.items()})
def photo_file(shop, case) -> str:
    """The table that `predict` writes of a photo's file."""
    (shop.folder / "photos/milk/0.png").rename(shop.folder / case.given)
    code, _, err = shop.call("predict", case.given, "--checkpoint", "m.safetensors", "--output", "p.csv")
    assert code == 0, err
    return f"p.csv: {no_formula((shop.folder / 'p.csv').read_text())}"


# -- Parameters of notebooks.

CELL = (
    'SEED = 0  # of all\nN = 3  # a number\nSHARE = 0.5  # a share\nDEEP = False  # or not\nNAME = "milk"  # a text\n'
)
TEXTS = ("", "crème brûlée", "a=b", "'; import os; os.system('touch made'); '", '"""\\"', "a\nimport os",
         "<script>alert(1)</script>", "{0.__class__}%s$HOME", "../../../../etc/passwd", "x" * 100_000)  # fmt: skip
REFUSED = {
    "write NAME=VALUE": ["N"],
    "unknown parameter": ["M=7", "=7", "__builtins__=7", "N;import os=7", "../N=7", "n=7"],
    "use --root": ["ROOT=/etc"],
    "give a whole number": ["N=seven", "N=7.5", f"N={2**32}", f"N={'9' * 5000}",
                            "N=__import__('os').system('touch made')"],
    "give a finite number": ["SHARE=nan", "SHARE=1e999"],
    "give true or false": ["DEEP=perhaps"],
    "give a whole number from 0": ["SEED=-1", f"SEED={2**30}"],
}  # fmt: skip
PARAMETERS = {
    "N=7": ("N=7", {"N": 7}),
    "SHARE=1": ("SHARE=1", {"SHARE": 1.0}),
    "DEEP=yes": ("DEEP=yes", {"DEEP": True}),
    **{f"text {text[:20]!a}": (f"NAME={text}", {"NAME": text}) for text in TEXTS},
    **{given[:20]: (given, says) for says, inputs in REFUSED.items() for given in inputs},
}


@door("notebook parameter", PARAMETERS)
def parameter(shop, case) -> str:
    import nbformat
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    from retailkit import runs
    from retailkit.runs.parameters import typed

    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    content = nbformat.writes(nbformat.v4.new_notebook(cells=[cell], metadata=kernel))
    path = put(shop.folder / "notebooks" / "00_small.ipynb", content)
    if case.value is None:
        return shop.cli("run 00 -p", case.given)
    values = typed(path, runs.parse_parameters([case.given]))
    made, names = parameterize_notebook(load_notebook_node(str(path)), values), {}
    exec("\n".join(cell.source for cell in made.cells), names)
    assert {key: names[key] for key in case.value} == case.value
    return " ".join(f"{key} = {part!r}" for key, part in case.value.items())


# -- What the environment says.

SAID = {
    "is no device": [f"RETAILKIT_DEVICE={name}" for name in (
        "gpu", "cuda:99", "meta", " ", "$(touch made)", "x" * 500)],
    "set RETAILKIT_CACHE to a folder": [f"RETAILKIT_CACHE={name}" for name in (
        "m.safetensors", "/dev/null", "/dev/null/x", "/proc/x", "x" * 300)],
    "is no number of threads": [f"OMP_NUM_THREADS={number}" for number in ("0", "-1", "many", "4;2", 10**20)],
    "grocery_store": ["RETAILKIT_DATA=/nowhere"],
}  # fmt: skip
ENVIRONMENT = {
    **{given: (given, None) for given in ("RETAILKIT_DEVICE=cpu", "RETAILKIT_DEVICE=cpu:0", "RETAILKIT_DEVICE=")},
    **{
        f"OMP_NUM_THREADS={text}": (f"OMP_NUM_THREADS={text}", [count])
        for text, count in [("1", 1), ("4,2", 4), ("", 0)]
    },
    **{given[:40]: (given, says) for says, inputs in SAID.items() for given in inputs},
}


@door("environment", ENVIRONMENT)
def environment(shop, case) -> str:
    from retailkit import config

    name, _, value = case.given.partition("=")
    shop.patch.setenv("RETAILKIT_CACHE", str(shop.folder / "cache"))
    shop.patch.setenv(name, value)
    if "THREADS" in name:
        assert [config.threads()] == case.value
        return f"{config.threads()} threads"
    train = "train --root photos --frozen --epochs 1 --output new.safetensors"
    try:
        shop.cli("check --dataset grocery_store" if "DATA" in name else train)
    finally:
        assert Path("new.safetensors").exists() == ("read" in case.outcomes)
    return case.given
