"""The products of the built-in data set: families of look-alikes of fictional brands, read from `catalogue.yaml`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

CONTENT = yaml.safe_load(Path(__file__).with_name("catalogue.yaml").read_text(encoding="utf-8"))
DEPARTMENTS = tuple(CONTENT["departments"])


@dataclass(frozen=True)
class Product:
    """One class.

    Attributes:
        label: class name: the family, then what the variant is called.
        family: name that look-alikes share; they differ in `variant` and `tint` only.
        brand: fictional brand.
        department: one of DEPARTMENTS.
        shape: of the package; a name in `artwork.yaml`.
        title: words on the front that look-alikes share.
        variant: words on the front that tell look-alikes apart.
        palette: four colours of the family as #rrggbb: main, dark, paper, accent.
        tint: colour of the variant's small mark.
        size_cm: width, height and depth.
        index: place in CATALOGUE.
    """

    label: str
    family: str
    brand: str
    department: str
    shape: str
    title: tuple[str, ...]
    variant: tuple[str, ...]
    palette: tuple[str, str, str, str]
    tint: str
    size_cm: tuple[float, float, float]
    index: int


def _products() -> Iterator[Product]:
    index = 0
    for family, entry in CONTENT["families"].items():
        shared = set.intersection(*(set(name.split()) for name in entry["variants"]))
        for name, tint in entry["variants"].items():
            yield Product(
                label=f"{family} {name.replace('%', ' %')}",
                family=family,
                title=tuple(entry["title"].split()),
                variant=tuple(word for word in name.split() if word not in shared),
                palette=tuple(entry["palette"]),
                tint=tint,
                size_cm=tuple(entry["size_cm"]),
                index=index,
                **{key: entry[key] for key in ("brand", "department", "shape")},
            )
            index += 1


CATALOGUE = tuple(_products())
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
