"""The products of the built-in data set: families of twins of fictional brands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DEPARTMENTS = ("dairy", "meat", "beverages", "dry_goods", "household")
SHAPES = ("carton", "box", "bottle", "can", "pouch", "tray")


@dataclass(frozen=True)
class Product:
    """One class.

    Attributes:
        label: class name: the family, then what the variant is called.
        family: name that twins share; they differ in `variant` and `tint` only.
        brand: fictional brand.
        department: one of DEPARTMENTS.
        shape: one of SHAPES.
        title: words on the front that twins share.
        variant: words on the front that tell twins apart.
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


# family: brand, department, shape, title, palette, size_cm, {variant: tint}; tints of a family are about equally light
_FAMILIES = {
    "NORDBY MILK": (
        *("NORDBY", "dairy", "carton", ("MILK",)),
        *(("#1c5fa8", "#0d2f63", "#f7f6f0", "#7cb342"), (9.6, 20.5, 7.0)),
        {"3%": "#b8433a", "1.5%": "#2f7a4f", "0.5%": "#6a58a5"},
    ),
    "HALVORS GROUND BEEF": (
        *("HALVORS", "meat", "tray", ("GROUND", "BEEF")),
        *(("#8f1d22", "#1f1a17", "#f6efe0", "#c8a34a"), (20.0, 16.5, 5.0)),
        {"MEDIUM": "#8a5a2b", "LEAN": "#476b3a", "EXTRA LEAN": "#4a5f86"},
    ),
    "SOLVEA ORANGE JUICE": (
        *("SOLVEA", "beverages", "bottle", ("ORANGE", "JUICE")),
        *(("#f28c1b", "#1e5b34", "#fff8e6", "#ffc93c"), (9.0, 22.0, 9.0)),
        {"NO PULP": "#3b8a4c", "SOME PULP": "#b5692a", "EXTRA PULP": "#a34f6b"},
    ),
    "CASA LUPA TOMATO SOUP": (
        *("CASA LUPA", "dry_goods", "can", ("TOMATO", "SOUP")),
        *(("#b3201f", "#5a1512", "#fbf1dc", "#d9a441"), (8.4, 11.8, 8.4)),
        {"MILD": "#5d7f3a", "SPICY": "#b4532a", "BASIL": "#3f7d6b"},
    ),
    "VOLTO COLA": (
        *("VOLTO", "beverages", "can", ("COLA",)),
        *(("#3a1230", "#1b0816", "#f4ead9", "#d9472b"), (6.6, 12.2, 6.6)),
        {"ORIGINAL": "#c0562f", "ZERO": "#6f7f8c", "LIGHT": "#5c8aa8"},
    ),
    "KORVO COFFEE": (
        *("KORVO", "dry_goods", "pouch", ("COFFEE",)),
        *(("#2d3a36", "#17100c", "#efe2c8", "#c98b3c"), (12.5, 21.0, 7.0)),
        {"MILD": "#8d7a3a", "MEDIUM": "#96632f", "DARK": "#7d4a45"},
    ),
    "MORNA MUESLI": (
        *("MORNA", "dry_goods", "box", ("CRUNCHY", "MUESLI")),
        *(("#e9b93c", "#5b3413", "#fdf6e3", "#2f7f86"), (16.0, 23.5, 6.0)),
        {"HONEY": "#b9791c", "COCOA": "#7b4b2f", "BERRY": "#923a5c"},
    ),
    "AVELLA SHAMPOO": (
        *("AVELLA", "household", "bottle", ("SHAMPOO",)),
        *(("#2f8f8b", "#14504f", "#f3faf7", "#e7c9a0"), (8.6, 20.5, 5.0)),
        {"DRY": "#a8743c", "OILY": "#5b8c3e", "NORMAL": "#6b6fae"},
    ),
}


def _products() -> Iterator[Product]:
    index = 0
    for family, (brand, department, shape, title, palette, size_cm, variants) in _FAMILIES.items():
        shared = set.intersection(*(set(name.split()) for name in variants))
        for name, tint in variants.items():
            label = f"{family} {name.replace('%', ' %')}"
            telling = tuple(word for word in name.split() if word not in shared)
            yield Product(label, family, brand, department, shape, title, telling, palette, tint, size_cm, index)
            index += 1


CATALOGUE = tuple(_products())
FAMILIES = {family: tuple(product for product in CATALOGUE if product.family == family) for family in _FAMILIES}
