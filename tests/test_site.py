"""The static site: its links lead somewhere, it loads nothing from elsewhere, and its search works from a folder."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from served import opened_browser

from retailkit.config import UserError

ROOT = Path(__file__).parents[1]
TERM = "### look-alikes\n\nProducts that differ in one detail, such as `$PRICE`. A wide table:\n\n"
WIDE = "|" + "a long name of a column |" * 12 + "\n" + "|" + "---|" * 12 + "\n" + "|" + "1 |" * 12 + "\n"


@pytest.fixture(scope="module")
def site():
    """The script that builds it."""
    spec = importlib.util.spec_from_file_location("site_build", ROOT / "docs" / "site" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notebook(title, *cells):
    found = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# {title}"), *cells])
    found.metadata = {"kernelspec": {"name": "python3", "display_name": "Python"}, "language_info": {"name": "python"}}
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A repository of a README, a guide, two executed notebooks and a solution."""
    root = tmp_path_factory.mktemp("repository")
    for folder in ("docs/solutions", "figures", "papermill_runs/fast-synthetic"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (900, 40)).save(root / "figures/bar.png")
    (root / "docs/script.py").write_text("print(1)\n")
    (root / "docs/glossary.md").write_text("# Glossary\n\n[script](script.py)\n\n" + TERM + WIDE)
    (root / "README.md").write_text(
        "# Workbook\n\n![bar](figures/bar.png) [10](notebooks/10_a.ipynb), "
        "[20](papermill_runs/fast-synthetic/20_b.ipynb), [solutions](docs/solutions), [elsewhere](https://example.org/x#y)\n"
    )
    text = "[a term](../../docs/glossary.md#look-alikes), [next](20_b.ipynb#second-part), $a_{ij}$"
    code = nbformat.v4.new_code_cell("x = 1  # widget-free " + "very " * 60 + "long")
    code.outputs = [
        nbformat.v4.new_output("stream", text="spoken by the output"),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}),
    ]
    run = root / "papermill_runs/fast-synthetic"
    nbformat.write(notebook("10 · First", nbformat.v4.new_markdown_cell(text), code), run / "10_a.ipynb")
    part = nbformat.v4.new_markdown_cell("## Second part\n\nEmbraceNet joins them.")
    nbformat.write(notebook("20 · Second", part), run / "20_b.ipynb")
    nbformat.write(notebook("Solutions"), root / "docs/solutions/10_a.ipynb")
    return root


@pytest.fixture(scope="module")
def built(site, root):
    site.build(root, root / "site", reference=False)
    return root / "site"


def test_pages_link_one_another_and_what_they_name_is_copied(site, built):
    page, index = (built / "notebooks/10_a.html").read_text(), (built / "index.html").read_text()
    assert 'href="../docs/glossary.html#look-alikes"' in page and 'href="20_b.html#second-part"' in page
    assert 'href="notebooks/10_a.html"' in index and 'href="docs/solutions/10_a.html"' in index
    assert 'href="https://example.org/x#y"' in index
    assert (built / "figures/bar.png").is_file() and (built / "docs/script.py").is_file()
    assert not site.broken_links(built)
    last = (built / "notebooks/20_b.html").read_text()  # in the order of the menu
    around = [("prev", "../notebooks/10_a.html"), ("next", "../docs/glossary.html")]
    assert re.findall(r'<a rel="(\w+)" href="([^"]*)"', last) == around
    assert last.count('aria-current="page"') == 1 and 'href="#second-part"' in last


def test_a_page_shows_formulas_and_explorers_without_loading_anything(built):
    page = (built / "notebooks/10_a.html").read_text()
    assert "<math" in page and "An explorer stands here" in page
    for path in [*built.rglob("*.html"), *built.rglob("*.css")]:
        assert not re.search(r'(?:src="|<link [^>]*href="|url\(|@import )[^">]*https?:', path.read_text()), path


def test_the_search_index_holds_prose_and_code_and_no_output(built):
    script = (built / "search_index.js").read_text()
    entries = json.loads(script.removeprefix("const INDEX = ").removesuffix(";\n"))
    found = {address: " ".join(words.split()) for address, _, _, words in entries}
    assert "Products that differ in one detail, such as $PRICE" in found["docs/glossary.html#look-alikes"]
    assert "EmbraceNet" in found["notebooks/20_b.html#second-part"]
    assert "widget-free" in found["notebooks/10_a.html#10--first"] and "spoken by" not in script


@pytest.mark.parametrize("link", ["missing.md", "glossary.md#no-such-term", "../../outside.md"])
def test_a_broken_link_fails_the_build_and_names_its_page(site, root, tmp_path, link):
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("site"))
    (tmp_path / "copy/docs/faq.md").write_text(f"# Questions\n\n[here]({link})\n")
    with pytest.raises(UserError, match=rf"docs/faq\.(md|html): the link .*{link.split('#')[-1]}.* leads nowhere"):
        site.build(tmp_path / "copy", tmp_path / "site", reference=False)


def test_markup_that_a_script_writes_is_no_link(site, tmp_path):
    (tmp_path / "page.html").write_text('<script src="gone.js">item = `<a href="${url}">${name}</a>`;</script>')
    assert site.broken_links(tmp_path) == ["page.html: the link gone.js leads nowhere"]


@pytest.mark.slow
def test_search_and_menu_work_from_a_folder_in_a_narrow_window(built):
    with opened_browser() as opened:
        page = opened.new_page(viewport={"width": 420, "height": 800})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        for path in built.rglob("*.html"):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
        page.fill("#query", "embracenet JOINS")
        assert page.locator("#found a").all_inner_texts() == ["20 · Second › Second part"]
        page.press("#query", "Enter")
        page.wait_for_url("**/notebooks/20_b.html#second-part")
        assert not page.locator("nav").is_visible()
        page.click("#menu")
        page.click("nav >> text=Glossary")
        page.wait_for_url("**/docs/glossary.html")
        page.fill("#query", "nowhere at all")
        assert "No page" in page.inner_text("#found")
        assert all(address.startswith(("file:", "data:")) for address in asked)


@pytest.mark.check
def test_the_site_of_this_repository_has_no_broken_link(site, tmp_path):
    pages = site.build(ROOT, tmp_path / "site")
    assert len(pages) > 40 and (tmp_path / "site/api/retailkit/models.html").is_file()
