"""Build a static site from the executed notebooks, the guides and the docstrings; `make site` calls this.

Nothing in it is loaded from elsewhere, so it works from a folder as it does from a server. Each page of the
repository has the same place in the site: `docs/glossary.md` becomes `docs/glossary.html`, an executed notebook
becomes `notebooks/NN_name.html`, and the README the first page. A link that leads nowhere fails the build.
"""

from __future__ import annotations

import html
import json
import os
import posixpath
import re
import shutil
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import nbformat
from jinja2 import Environment, FileSystemLoader
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from retailkit.config import UserError
from retailkit.runs.report import FORMULA, mathml, notebook_html

HERE = Path(__file__).parent
EXECUTED = "papermill_runs/fast-synthetic/"
# Groups of the menu and the files of each, in reading order.
GROUPS = {
    "Start": ["README.md"],
    "Notebooks": [EXECUTED + "*.ipynb"],
    "Guides": ["docs/*.md", "CONTRIBUTING.md", "CHANGELOG.md"],
    "Solutions": ["docs/solutions/*.ipynb"],
}
ELSEWHERE = re.compile(r"[a-z]+:|//")
LINK = re.compile(r'(?<=\s)(href|src)="([^"]*)"')
HEADING = re.compile(r'<h([1-4])[^>]*>(.*?)(?:<a class="anchor-link"[^>]*>[^<]*</a>)?</h\1>', re.S)
TABLE = re.compile(r"<table.*?</table>", re.S)
SCRIPT = re.compile(r"(<script\b[^>]*>).*?</script>", re.S)  # may hold the markup that it writes
MARKUP = re.compile(r"\]\([^)]*\)|[\[\]*`|#]+|\|?:?---+:?")  # of Markdown, which a reader does not search


@dataclass(frozen=True)
class Page:
    """A page of the site: where it comes from, where it goes, and what stands in it."""

    source: Path  # in the repository
    address: str  # in the site
    group: str
    body: str  # HTML
    title: str
    sections: list[tuple[str, str]]  # anchor and heading of its parts


def address_of(path: str) -> str:
    """Return where the site keeps a file of the repository."""
    if path == "README.md":
        return "index.html"
    path = path.replace(EXECUTED, "notebooks/")
    return re.sub(r"\.(md|ipynb)$", ".html", path)


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def text_of(markup: str) -> str:
    """Return HTML without its tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup)).strip()


def read_page(source: Path, root: Path, group: str) -> Page:
    """Return a Markdown file or an executed notebook as a page, its links still those of the repository."""
    if source.suffix == ".md":
        body = markdown2html(FORMULA.sub(mathml, source.read_text(encoding="utf-8")))
    else:
        body = notebook_html(source, "basic")

    def anchored(found: re.Match[str]) -> str:
        level, heading = found.groups()
        return f'<h{level} id="{anchor_of(text_of(heading))}">{heading}</h{level}>'

    body = TABLE.sub(r'<div class="scroll">\g<0></div>', HEADING.sub(anchored, body))
    headings = [(int(level), text_of(heading)) for level, heading in HEADING.findall(body)]
    title = next((heading for level, heading in headings if level == 1), source.stem)
    sections = [(anchor_of(heading), heading) for level, heading in headings if level == 2]
    return Page(source, address_of(source.relative_to(root).as_posix()), group, body, title, sections)


def relinked(page: Page, root: Path, output: Path, addresses: set[str]) -> str:
    """Return the body of a page with links to pages of the site; what else they name in the repository is copied."""

    def lead(found: re.Match[str]) -> str:
        name, link = found[1], html.unescape(found[2])
        path, hashed, anchor = link.partition("#")
        if not path or ELSEWHERE.match(path):
            return found[0]
        target = Path(os.path.normpath(page.source.parent / unquote(path)))
        if target.is_relative_to(root) and target.is_dir():
            target = min(target.iterdir())  # the first page of a folder
        own = target.relative_to(root).as_posix() if target.is_relative_to(root) else ""
        address = address_of(own)
        if address not in addresses:
            if not own or not target.is_file():
                raise UserError(f"{page.source.relative_to(root)}: the link {link} leads nowhere; mend it there")
            address = own
            (output / address).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, output / address)
        address = posixpath.relpath(address, posixpath.dirname(page.address) or ".")
        return f'{name}="{html.escape(address + hashed + anchor)}"'

    return LINK.sub(lead, page.body)


def search_entries(page: Page) -> list[tuple[str, str, str, str]]:
    """Return address, title, heading and words of each section of a page; outputs of cells are left out."""
    text = page.source.read_text(encoding="utf-8")
    cells = [] if page.source.suffix == ".md" else nbformat.reads(text, as_version=4).cells
    prose = [(cell.source, cell.cell_type == "markdown") for cell in cells] or [(text, True)]
    sections = [["", ""]]  # heading and words
    for source, is_markdown in prose:
        for part in re.split(r"^(#+ .*)$", source, flags=re.M) if is_markdown else [source]:
            if is_markdown and re.match("#+ ", part):
                sections.append([MARKUP.sub("", part).strip(), ""])
            elif is_markdown:  # without formulas; code between backticks stays
                part = FORMULA.sub(lambda found: "" if found.lastgroup else found[0], part)
                sections[-1][1] += " " + MARKUP.sub(" ", part)
            else:
                sections[-1][1] += " " + part
    return [
        (page.address + (f"#{anchor_of(heading)}" if heading else ""), page.title, heading, " ".join(words.split()))
        for heading, words in sections
        if words.strip()
    ]


def write_reference(output: Path) -> None:
    """Write the pages of the package's modules, from their docstrings."""
    import pdoc
    import pdoc.render

    pdoc.render.configure(docformat="google", show_source=False, template_directory=HERE / "api")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # types that are imported for checkers only
        pdoc.pdoc("retailkit", "!retailkit.cli", "!retailkit.__main__", output_directory=output)


def broken_links(output: Path) -> list[str]:
    """Return a line for each link of a page that leads nowhere; the anchors of the reference are left to pdoc."""
    pages = {path: path.read_text(encoding="utf-8") for path in output.rglob("*.html")}
    anchors = {path: set(re.findall(r'(?<=\s)id="([^"]*)"', text)) for path, text in pages.items()}
    lines = []
    for path, text in pages.items():
        text = SCRIPT.sub(r"\1", text)
        for link in {html.unescape(link) for _, link in LINK.findall(text) if link and not ELSEWHERE.match(link)}:
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name)).resolve() if name else path
            named = anchor and target in anchors and "api" not in path.relative_to(output).parts
            if not target.is_file() or (named and unquote(anchor) not in anchors[target]):
                lines.append(f"{path.relative_to(output)}: the link {link} leads nowhere")
    return sorted(lines)


def build(root: Path, output: Path, reference: bool = True) -> list[Page]:
    """Write the site of the repository at `root` into the folder `output`, which is emptied first.

    Args:
        root: folder with a README.md, docs and executed notebooks.
        output: folder of the site.
        reference: also write the reference of the package, which takes half of the time.

    Returns:
        Its pages in reading order, without those of the reference.

    Raises:
        UserError: a link that leads nowhere, with its page.
    """
    root, output = root.resolve(), output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    found = [(path, group) for group in GROUPS for glob in GROUPS[group] for path in sorted(root.glob(glob))]
    pages = [read_page(path, root, group) for path, group in found]
    addresses = {page.address for page in pages}
    template = Environment(loader=FileSystemLoader(HERE), autoescape=True).get_template("page.html.j2")
    for page, before, after in zip(pages, [None, *pages], [*pages[1:], None], strict=False):
        body = relinked(page, root, output, addresses)
        facts = {"page": page, "body": body, "pages": pages, "before": before, "after": after, "groups": GROUPS}
        text = template.render(up="../" * page.address.count("/"), reference=reference, **facts)
        (output / page.address).parent.mkdir(parents=True, exist_ok=True)
        (output / page.address).write_text(text, encoding="utf-8")
    entries = [entry for page in pages for entry in search_entries(page)]
    (output / "search_index.js").write_text(f"const INDEX = {json.dumps(entries)};\n", encoding="utf-8")
    own = (HERE / "site.css").read_text(encoding="utf-8")
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    style = f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}"  # ours, and the colours of code
    (output / "site.css").write_text(style, encoding="utf-8")
    shutil.copyfile(HERE / "search.js", output / "search.js")
    if reference:
        write_reference(output / "api")
    if lines := broken_links(output):
        raise UserError("\n".join(lines))
    return pages


if __name__ == "__main__":
    try:
        made = build(HERE.parents[1], Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print(f"{len(made)} pages and the reference of the package; open {sys.argv[1]}/index.html")
