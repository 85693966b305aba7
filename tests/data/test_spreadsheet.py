"""The parser of tables: read rightly, or refused with the row as a spreadsheet counts it."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from retailkit.config import DataError
from retailkit.data.spreadsheet import MARK, read_table, write_table


def write(tmp_path, content: str | bytes):
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_sep_line_names_the_separator(tmp_path):
    table = read_table(write(tmp_path, "sep=;\nimage;label, or name\na.jpg;milk\n"))
    assert list(table.columns) == ["image", "label, or name"] and table.index.tolist() == [2]


def test_short_rows_are_filled_and_empty_fields_at_the_end_are_no_fields(tmp_path):
    table = read_table(write(tmp_path, 'image,label,text,,\na.jpg,12" pizza\nb.jpg,tea,hot,,\n'))
    assert table.to_numpy().tolist() == [["a.jpg", '12" pizza', ""], ["b.jpg", "tea", "hot"]]


def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path):
    table = read_table(write(tmp_path, 'image,text\na.jpg,"two\nlines"\n\n,\nb.jpg,x\n'))
    assert table.index.tolist() == [2, 5]


QUOTE = "a double quote does not end"
REFUSED = [
    ("", "empty"),
    ("image,label\na.jpg,milk\nb.jpg,milk, 3 %\n", "row 3: 3 fields, but the header has 2; put values that hold ','"),
    ('image,label\na.jpg,"milk\nb.jpg,tea\n', f"row 2: {QUOTE}"),
    ('image,label\n\na.jpg,"milk\nb.jpg,tea"\n', f"row 3: {QUOTE}"),
    ('image,label\na.jpg,"milk\nb.jpg,te"a\n', f"row 2: {QUOTE}"),
    ('image,label,text\na.jpg,milk,"big\nb.jpg,tea\nc.jpg,soup"\n', f"row 2: {QUOTE}"),
    ("image,Label,label\n", "more than one column 'label'"),
    ("image,label\na.jpg,m\0lk\n", "row 2: holds a NUL"),
    (b"image,label\na.jpg,cr\xe8me\n", "not UTF-8 text; save"),
    ("# exported\nimage,label\n", "no column 'image' (found: # exported); the first row must name the columns"),
    ("image,labels\n", "no column 'label' (found: image, labels); rename 'labels'"),
]


@pytest.mark.parametrize(("content", "says"), REFUSED)
def test_what_is_not_a_table_is_refused_in_one_line(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        read_table(path, required=("image", "label"))
    assert str(path) in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


SOUND = ['12" pizza', "semi;colon", "a,b", "two\nlines", "two\rlines", "'quoted'", "crème 3 %", "NA", "1-2", "x = y"]
FORMULAS = ["=1+1", "+1", "-20 % fat", "@sum", "\ttab", " =1", '"=1"', "'=1", "＝1+1"]
FORMULAS += ["a;=1+1", "a; -1", 'a;"@x"', "b\n=1", "b\r+1", ";;=1", "'a;'=1"]  # where a table is split at `;`


def cells(path):
    """What may become a cell where tables are split at `;` and quotes hold nothing together."""
    return [cell.lstrip(' "') for line in path.read_text().splitlines() for cell in re.split("[;\t]", line)]


def test_texts_that_are_no_formulas_are_read_back_by_pandas_as_they_were(tmp_path):
    table = pd.DataFrame({"image": SOUND, "label": SOUND[::-1], "unknown": [True, False] * 5})
    write_table(table, tmp_path / "t.csv")
    plain = {"image": str, "label": str, "unknown": bool}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv", dtype=plain, keep_default_na=False), table)


@pytest.mark.parametrize("name", ["image", "label"])
def test_no_cell_becomes_a_formula_also_where_tables_are_split_at_semicolons(tmp_path, name):
    write_table(pd.DataFrame({name: FORMULAS, "label2": FORMULAS}), tmp_path / "t.csv")
    assert not [cell for cell in cells(tmp_path / "t.csv") if cell.startswith(tuple("=+-@＝"))]
    for values in pd.read_csv(tmp_path / "t.csv", dtype=str).to_numpy().T:
        assert not [value for value in values if value.lstrip(' "').startswith(tuple("=+-@＝\t"))]


def test_the_marks_before_formulas_are_taken_away_by_the_reader(tmp_path):
    table = pd.DataFrame({"image": [f"{n}.png" for n in range(len(FORMULAS))], "label": FORMULAS})
    write_table(table, tmp_path / "t.csv")
    expected = [label.strip().replace("\r", "\n") for label in FORMULAS]
    assert read_table(tmp_path / "t.csv")["label"].tolist() == expected
    read = pd.read_csv(tmp_path / "t.csv", dtype=str)["label"]
    assert [MARK.sub("", value) for value in read] == FORMULAS, "nothing is lost"
