"""The products of the built-in data set: families of look-alikes of fictional brands, read from `catalogue.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from retailkit.config import read_yaml

CONTENT = read_yaml(Path(__file__).with_name("catalogue.yaml"))
DEPARTMENTS = tuple(CONTENT["departments"])


@dataclass(frozen=True)
class Product:
    """One class."""

    label: str  # the family, then what the variant is called
    family: str  # what look-alikes share; they differ in `variant` and `tint` only
    brand: str
    department: str  # one of DEPARTMENTS
    shape: str  # of the package; a name in `artwork.yaml`
    title: tuple[str, ...]  # words on the front that look-alikes share
    variant: tuple[str, ...]  # words on the front that tell look-alikes apart
    palette: tuple[str, str, str, str]  # main, dark, paper, accent, as #rrggbb
    tint: str  # colour of the variant's small mark
    size_cm: tuple[float, float, float]  # width, height and depth
    index: int  # place in CATALOGUE
    coded: bool = False  # the words of the variant stand on a field of its colour


def _product(index: int, family: str, name: str) -> Product:
    entry = CONTENT["families"][family]
    shared = set.intersection(*(set(variant.split()) for variant in entry["variants"]))
    return Product(
        label=f"{family} {name.replace('%', ' %')}",
        family=family,
        title=tuple(entry["title"].split()),
        variant=tuple(word for word in name.split() if word not in shared),
        palette=tuple(entry["palette"]),
        tint=entry["variants"][name],
        size_cm=tuple(entry["size_cm"]),
        index=index,
        **{key: entry[key] for key in ("brand", "department", "shape")},
    )


_NAMES = [(family, name) for family, entry in CONTENT["families"].items() for name in entry["variants"]]
CATALOGUE = tuple(_product(index, *names) for index, names in enumerate(_NAMES))
FAMILIES = {name: tuple(product for product in CATALOGUE if product.family == name) for name in CONTENT["families"]}


@cache
def goods_of(department: str) -> tuple[Product, ...]:
    """Return the other brands that fill a department's shelves; none of them is a class."""
    return tuple(
        replace(
            FAMILIES[entry["like"]][0],
            brand=entry["brand"],
            variant=(entry["variant"],),
            palette=tuple(entry["palette"]),
            tint=entry["palette"][1],
        )
        for entry in CONTENT["departments"][department]["goods"]
    )
