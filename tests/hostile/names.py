"""Names that are programs somewhere: of classes, files and metrics, on the pages and in the tables that are written."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

from hostile import Case, cases
from hostile.files import header
from hostile.tables import RECORD

PAGE, QUOTED, FORMULA = "<img src=x onerror=alert(1)>", '" onerror="alert(1)', "=cmd()"
MARKDOWN, LATEX, CONTROL = "](javascript:alert(1)) | `x` <b>", r"a}\input{x} $5 100% & #_^~", "a\x1b[2J\0\x08b"
NAMES = {"a page": PAGE, "an attribute": QUOTED, "a formula": FORMULA, "Markdown": MARKDOWN}


class Tags(HTMLParser):
    """Finds what a page would run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.active: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes) -> None:
        self.active += [tag for name, value in attributes if "alert" in f"{name}{value}" and name.startswith("on")]
        self.active += [tag for name, value in attributes if name in ("src", "href") and "javascript" in str(value)]


def harmless(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8")
    assert not Tags(text).active, Tags(text).active
    return f"{path.name}: shown as text"


def classed(shop, label: str) -> None:
    """Give the class `milk` another name, in the folder and in the checkpoint."""
    (shop.folder / "photos" / "milk").rename(shop.folder / "photos" / label)
    header("build", "classes", value=[label, "soup"])(shop.folder / "m.safetensors")


def no_formula(path: Path) -> str:
    cells = [cell for line in path.read_text().splitlines() for cell in re.split('[,;\t"]', line)]
    assert not [cell for cell in cells if cell.lstrip().startswith(tuple("=+@"))], cells
    return f"{path.name}: no formula"


COMMANDS = {
    "explain": ("explain {photo} --checkpoint m.safetensors --budget 8 --output e.html", "e.html"),
    "predict": ("predict {photo} --checkpoint m.safetensors --output p.csv", "p.csv"),
    "evaluate": ("evaluate --root photos --checkpoint m.safetensors --predictions v.csv", "v.csv"),
    "compare": ("compare m.safetensors n.safetensors --root photos --html c.html --csv c.csv", "c.html"),
    "export": ("export --root photos --checkpoint m.safetensors --output shop", "shop/card.md"),
    "check --deep": ("check --root photos --deep --output d.html", "d.html"),
}


def written(shop, name, given, value) -> str:
    """The page or table that a command writes where a class has a name."""
    label, command = given
    classed(shop, label)
    (shop.folder / "n.safetensors").write_bytes((shop.folder / "m.safetensors").read_bytes())
    line, file = COMMANDS[command]
    photo = next(iter(sorted((shop.folder / "photos" / label).iterdir()))).relative_to(shop.folder)
    shop.cli(*(word.format(photo=photo) for word in line.split()))
    path = shop.folder / file
    if path.suffix == ".csv":
        return no_formula(path)
    if path.suffix == ".md":
        text = path.read_text()
        assert "<img" not in text and "](javascript" not in text.replace("\\]", ""), text
        assert not re.search(r"(?<!\\)\|.*(?<!\\)`x`", text)
        return "card.md: shown as text"
    return harmless(path, label)


def record_tables(shop, name, given, value) -> str:
    from retailkit import runs

    (shop.folder / "notebooks").mkdir()
    folder = shop.folder / "papermill_runs" / "latest" / "fast-synthetic"
    folder.mkdir(parents=True)
    table = {"columns": [given, "n"], "data": [[given, 1]]}
    content = RECORD | {"notebook": "20_training", "tables": {given: table, f"../../{given}": table}}
    (folder / "20_training.json").write_text(json.dumps(content))
    paths = runs.write_tables("tables")
    assert all(path.parent == Path("tables") and path.is_file() for path in paths) and len(paths) == 4
    for path in paths:
        text = path.read_text()
        if path.suffix == ".tex":
            assert r"\input" not in text and not re.search(r"(?<!\\)[$%#]", text), text
    return f"{len(paths)} files in their folder"


def summary(shop, name, given, value) -> str:
    """What CI shows of a run: Markdown and JUnit XML."""
    from xml.etree import ElementTree

    from retailkit.runs import report

    failed = SimpleNamespace(notebook="20_training", seconds=1.0, status="failed", error=given, name="20_training")
    report.append_summary(shop.folder / "s.md", "fast-synthetic", [failed], [])
    text = (shop.folder / "s.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| 20_training")]
    assert row.count("|") == 4 and "<img" not in row and "\x1b" not in row, row
    report.write_junit(shop.folder / "j.xml", "fast-synthetic", [failed], [])
    assert ElementTree.parse(shop.folder / "j.xml").find(".//failure") is not None
    return "one row of Markdown, sound XML"


def tool(shop, name, given, value) -> str:
    """What the tool shows."""
    import pandas as pd

    from retailkit.widgets import layout, page

    table = page.table(pd.DataFrame({given: [given]}))
    section = page.Section(given, [given], [page.Image(b"", given, given)], [table])
    shown = page.fragment(section) + layout.problem(given)
    found = Tags(shown).active
    assert not found, found
    return "shown as text"


def photo_file(shop, name, given, value) -> str:
    """The table that `predict` writes of a photo's file."""
    path = shop.folder / given
    (shop.folder / "photos/milk/0.png").rename(path)
    said = shop.cli("predict", given, "--checkpoint", "m.safetensors", "--output", "p.csv")
    return no_formula(shop.folder / "p.csv") if said else ""


ALL = NAMES | {"LaTeX": LATEX, "control characters": CONTROL}
CASES: list[Case] = [
    *cases("name of a class", written, {f"{name}, {command}": ((label, command), None)
                                        for name, label in NAMES.items() for command in COMMANDS
                                        if name != "an attribute" or command != "export"},
           {f"{name}, {command}" for name in NAMES for command in COMMANDS if command not in ("predict", "explain")}),
    *cases("name in a record", record_tables, {name: (text, None) for name, text in ALL.items()}),
    *cases("error of a run", summary, {name: (text, None) for name, text in ALL.items()}),
    *cases("name in the tool", tool, {name: (text, None) for name, text in ALL.items()}),
    *cases("name of a photo", photo_file, {"a formula": ("=cmd().png", None), "an option": ("./--force.png", None),
                                           "a mark": ("@a.png", None), "a page": ("<img src=x>.png", None)}),
]  # fmt: skip
