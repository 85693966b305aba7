"""The one parser for tables that people write: CSV in the dialects of spreadsheets.

It reads rightly or refuses: a row is never cut, joined to the next one or dropped without a word.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from retailkit.cache import open_file
from retailkit.config import CONTROL, DataError
from retailkit.data import images

SUFFIXES = (".csv", ".tsv", ".txt")
SEPARATORS = ",;\t|"
MOST_COLUMNS = 16_384
AT_ONCE = 1 << 10  # rows that become columns together; of many, Python's collector would visit each again and again
FORMULA = re.compile(r"[=+\-@\t\r\n]")  # how a cell begins that a spreadsheet would compute
# Where a cell may begin with a formula: some languages split tables at `;`, and then quotes hold no line together.
CELL = rf"(?:^|(?<=[;\t\r\n])){{}}(?=[\s\"']*(?:{FORMULA.pattern}|[＝＋－＠]))"
START, MARK = re.compile(CELL.format("")), re.compile(CELL.format("'"))
QUOTES = "a double quote does not end with its value; close it, or write two double quotes for one inside quotes"
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_table(path: str | Path, required: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV, all values as stripped text ("NA" is a good label), column names in lower case.

    The separator is a comma, semicolon, tab or bar: the one that the header holds most often, or the one that a first
    line `sep=;` names. Blank rows are left out, and so are the apostrophes that `write_table` puts before formulas.

    Args:
        path: the file.
        required: columns that the header must name.

    Returns:
        The rows; the index is their number as a spreadsheet counts it, the header being row 1.

    Raises:
        DataError: not UTF-8 or UTF-16 text, a column missing or named twice, a row with more fields than the header,
            or a quote that does not end with its field; the message names the row and the cure.
    """
    path = Path(path)
    text = _text(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    if first.lower().startswith("sep="):
        separator, text = first[4:5] or separator, text.partition("\n")[2]
    rows = _rows(path, text, separator)
    _, header = next(rows, (0, None))
    if header is None:
        raise DataError(f"{path}: empty; name the columns in the first row and add one row for each image")
    columns = [_cleaned(name).lower() for name in header]
    if len(columns) > MOST_COLUMNS:
        raise DataError(f"{path}: {len(columns):,} columns, more than any spreadsheet has; is the separator right?")
    if twice := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise DataError(f"{path}: more than one column {twice[0]!r}; rename or remove all but one")
    for name in required:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            cure = f"rename {near[0]!r}" if near else "the first row must name the columns; add it"
            raise DataError(f"{path}: no column {name!r} (found: {', '.join(columns)}); {cure}")
    parts = [pd.DataFrame(columns=columns, index=pd.Index([], dtype=int), dtype=object)]
    while some := list(islice(rows, AT_ONCE)):
        for number, row in some:
            if (missing := len(columns) - len(row)) < 0:
                what = f"{len(row)} fields, but the header has {len(columns)}"
                raise DataError(f"{path} row {number}: {what}; put values that hold {separator!r} in double quotes")
            row += [""] * missing
        numbers, fields = zip(*some, strict=True)
        parts.append(pd.DataFrame(fields, numbers, columns, dtype=object).apply(_shared))
    return pd.concat(parts)


def _cleaned(value: str) -> str:
    return MARK.sub("", value.lstrip()).strip() if "'" in value else value.strip()


def _shared(column: pd.Series) -> pd.Series:
    """Return a column with its values cleaned; equal ones are cleaned, and kept in memory, once."""
    codes, values = pd.factorize(column)
    return pd.Series(np.array([*map(_cleaned, values)], dtype=object)[codes], column.index)


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a CSV whose texts no spreadsheet takes for a formula; names of files may be any bytes.

    Where a text begins like a formula, also after a `;`, a tab or a line break in it, it gets an apostrophe, which
    `read_table` takes away; a relative path, in a column `image` or `..._image`, begins with `./` instead, so that it
    still is one.
    """
    safe = table.copy()
    for name in safe.select_dtypes(exclude=("number", "bool")):
        values = [_safe(value, name.endswith("image")) if isinstance(value, str) else value for value in safe[name]]
        safe[name] = pd.Series(values, safe.index, dtype=object)
    returns = any("\r" in value for value in safe.to_numpy().ravel() if isinstance(value, str))
    # The writer puts a value in quotes for a return only where lines end with one.
    safe.to_csv(path, index=False, errors="surrogateescape", lineterminator="\r\n" if returns else "\n")


def _safe(text: str, is_path: bool) -> str:
    return START.sub("'", "./" + text if is_path and START.match(text) else text)


def _text(path: Path) -> str:
    """Return the file's text, with line ends and accents (NFC) of one kind."""
    with open_file(path, limit=1 << 28) as file:
        content = file.read()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = unicodedata.normalize("NFC", content.decode(encoding)).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save the table as CSV UTF-8") from None
    if found := CONTROL.search(text):
        line, what = text[: found.start()].count("\n") + 1, "a NUL" if found[0] == "\0" else "the control"
        sign = "" if found[0] == "\0" else f" {found[0]!r}"
        raise DataError(f"{path} row {line}: holds {what} character{sign}; save the table as CSV UTF-8")
    return text


def _rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, without empty fields at their ends, and their numbers in a spreadsheet."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    number, line = 0, 0
    image = "|".join(suffix[1:] for suffix in (*images.SUFFIXES, ".heic"))
    is_row = re.compile(rf"[^{re.escape(separator)}]*\.({image})\s*{re.escape(separator)}", re.I)  # begins with a file
    try:
        for number, row in enumerate(reader, start=1):
            if reader.line_num > line + 1:
                lines = [line for value in row for line in value.split("\n")[1:]]
                if any(line.count(separator) >= max(len(row) - 1, 1) or is_row.match(line) for line in lines):
                    raise DataError(f"{path} row {number}: {QUOTES}")
            line = reader.line_num
            while row and not _cleaned(row[-1]):
                row.pop()
            if row:
                yield number, row
    except csv.Error:
        raise DataError(f"{path} row {number + 1}: {QUOTES}") from None
