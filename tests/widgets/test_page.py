"""Pages need no other file, escape what comes from outside, and say what their images show."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd

from retailkit import plots
from retailkit.widgets import page as pages


def test_a_page_of_an_explanation_needs_no_other_file_and_escapes_names(made_up_explanation):
    found = made_up_explanation()
    page = pages.explanation_page(found, found.image)
    assert page.startswith("<!doctype html>") and page.count("data:image/png;base64,") == 2
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "viewport" in page
    assert "lean &lt;3 %&gt;" in page and "<3 %>" not in page and "&lt;LEAN&gt;" in page
    assert "Held-out R² 0.20: weak fit, only a hint" in page and "Orange supports extra lean" in page
    alts = re.findall(r'alt="([^"]*)"', page)
    assert len(alts) == 2 and "the word EXTRA" in alts[1]
    assert page == pages.explanation_page(found, found.image), "the same explanation is the same page"


def test_an_explanation_that_must_not_be_shown_has_no_map_and_no_words_and_says_why(made_up_explanation):
    """Formerly R² -1571 was called a hint, under strong colours."""
    misfit = replace(made_up_explanation(), r2=np.array([-1571.0]))
    for found, why in ((made_up_explanation("one part"), "nothing to explain: one part"), (misfit, "Raise the budget")):
        page = pages.explanation_page(found, found.image)
        assert page.count("<img") == 1 and "EXTRA" not in page and "Orange" not in page and why in page
    drawn = plots.explanation_map(misfit, 0, plots.canvas(pages.SIDE), misfit.image)
    photo = plots.image(misfit.image, ax=plots.canvas(pages.SIDE))
    assert pages.picture(drawn, "").png == pages.picture(photo, "").png


def test_a_sentence_says_what_was_found_and_the_alternative_text_of_the_map_too(made_up_explanation):
    found = made_up_explanation()
    said = "What supports extra lean most: the word EXTRA, the right. What speaks against it most: the left."
    assert pages.finding(found) == said and said in pages.explained(found, found.image).images[0].alt
    spans = np.tile([-9.0, 9.0], (1, 2, 1))
    unsure = replace(found, image_intervals=spans, text_intervals=spans)
    assert pages.finding(unsure) == "No word and no part of the photo clearly supports extra lean."


def test_bars_of_a_table_start_at_zero_and_share_the_limit():
    frame = pd.DataFrame({"word": ["<a>", "b"], "weight": [1.0, -2.0]})
    made = pages.table(frame, "weight", 2.0, signed=True)
    assert "min-width: 7em; background: linear" in re.sub(r"\s+", " ", made.replace(";background", "; background"))
    assert "&lt;a&gt;" in made and "<a>" not in made and "-2.00" in made
    assert re.search(r"50(\.0)?% *, *#D55E0090 50(\.0)?%, #D55E0090 75(\.0)?%", made), made
