"""Readings of one phrase join, twins never do."""

import itertools
from collections import Counter

import numpy as np
import pytest

from retailkit.data.synthetic.catalogue import FAMILIES
from retailkit.data.text import misread
from retailkit.explain import phrases
from retailkit.explain.phrases import group, match

STEAK = "STRIPLOIN GRILLING STEAK CLUB PACK"
SIX = [
    "STRIPLOIN GRILLING SIEAK CLUB PIO",
    "STRIPLOIN GCRILLING STEAK CLUB PACK",
    "STRIPLOIN GRILLING STEAK CLU",
    STEAK,
    "STRIPLOIN GRRLING STRAK CLUB PACK",
    "STRIPLOIN GRILLING STEAK CLIB PACK",
]
OFTEN = 50
COUNTS = [(1, 1), (1, OFTEN), (OFTEN, 1), (OFTEN, OFTEN), (3, 12)]


def together(a, b, *others, counts=(1, 1)):
    """Whether two texts are in one group, among others that were seen once each."""
    groups = group([a, b, *others], [*counts, *[1] * len(others)])
    return any({phrases.normalise(a), phrases.normalise(b)} <= found.variants.keys() for found in groups)


# -- One phrase


@pytest.mark.parametrize("counts", [None, [7] * 6, [1, 2, 4, 20, 3, 2], [2, 1, 1, 25, 1, 2]])
def test_the_six_spellings_of_one_phrase_are_one_group(counts):
    (found,) = group(SIX, counts)
    assert found.canonical == STEAK == next(iter(found.variants)) and found.count == sum(counts or [1] * 6)
    assert found.variants == dict(zip(SIX, counts or [1] * 6, strict=True))


def test_they_stay_one_group_with_one_missing_and_among_the_readings_of_a_twin():
    for five in itertools.combinations(SIX, 5):
        assert [set(found.variants) for found in group(five)] == [set(five)]
    sirloin = [text.replace("STRIPLOIN", "SIRLOIN") for text in SIX]
    groups = {found.canonical: set(found.variants) for found in group(SIX + sirloin)}
    assert groups == {STEAK: set(SIX), STEAK.replace("STRIPLOIN", "SIRLOIN"): set(sirloin)}


@pytest.mark.parametrize(("right", "read"), [
    ("YOGURT", "Y0GURT"), ("YOGURT", "YOGUR7"), ("BEEF", "8EEF"),  # digits for letters
    ("STEAK", "SIEAK"), ("SHAMPOO", "SHARNPOO"), ("CHEDDAR CHEESE", "OHEDDAR OHEESE"),  # letters that look alike
    ("STEAK", "STRAK"), ("YOGURT", "YOGUT"), ("MUSHROOMS", "MUSHROMS"),
    ("EXTRA LEAN", "EXTRALEAN"), ("MILK 3 %", "MILK 3%"), ("MILK 1.5 %", "MILK 1,5%"),  # spaces
    ("NO PULP", " no  pulp "), ("CO-OP MILK", "CO OP MILK."),
])  # fmt: skip
def test_readings_of_one_phrase_join_even_if_seen_once_each(right, read):
    assert together(right, read) and together(read, right)


LINE = "NATURALLY SMOKED BLACK FOREST HAM"
CUT = STEAK.removesuffix("PACK")


@pytest.mark.parametrize(("right", "read", "often", "seldom", "why"), [
    ("GRILLING STEAK CLUB PACK", "GRILLING STEAK CLIB PACK", OFTEN, None, "three other words agree"),
    ("CLUB", "CLIB", None, OFTEN, "no other word"), ("STEAK CLUB PACK", "STEAK CLIB PACK", None, OFTEN, "only two"),
    ("GRILLING STEAK TOP PACK", "GRILLING STEAK TIP PACK", None, OFTEN, "a word of three letters"),
    *((LINE, LINE[:-end], 4, 1, "cut off at the end, seen less often") for end in (2, 4, 7)),
    (LINE, "NATURALLY SMOKED BLA", None, OFTEN, "two words agree"),
    (LINE, "SMOKED BLACK FOREST HAM", None, OFTEN, "cut off at the start"),
    (LINE, "ATURALLY SMOKED BLACK FOREST HAM", None, OFTEN, "the first letter is lost"),
    (LINE + " 500 G", LINE, None, OFTEN, "a number is lost"),
    ("TWO WORDS AGREE COMPLETELYDIFFERENT", "TWO WORDS AGREE", None, OFTEN, "too short"),
    (STEAK, CUT + "PIO", 4, 2, "the last of many words may be rubbish"),
    (STEAK, CUT + "SIZE", None, OFTEN, "begins otherwise"), (STEAK, CUT + "P10", None, OFTEN, "a number"),
    ("STEAK CLUB PACK", "STEAK CLUB PIO", None, OFTEN, "few words agree"),
])  # fmt: skip
def test_what_is_a_reading_only_if_the_right_one_is_seen_more_often(right, read, often, seldom, why):
    """They join if the right one was seen `often` times, and not if it was seen `seldom` times; None is not tried."""
    for count, joined in ((often, True), (seldom, False)):
        assert count is None or together(right, read, counts=(count, 1)) == joined, why


def test_a_last_word_that_stands_elsewhere_is_no_rubbish():
    assert not together(STEAK, CUT + "PIO", "PIO", counts=(OFTEN, 1))


def test_what_was_cut_off_two_phrases_belongs_to_neither():
    start, ends = "NATURALLY SMOKED BLACK FOREST", ("HAM", "BACON")
    groups = group([start, *(f"{start} {end}" for end in ends)], [1, 20, 20])
    assert sorted(map(len, (found.variants for found in groups))) == [1, 1, 1]


# -- Twins


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("one", "other"), [
    ("LEAN", "EXTRA LEAN"), ("LEAN GROUND BEEF", "EXTRA LEAN GROUND BEEF"), ("LEAN GROUND BEEF", "MEDIUM GROUND BEEF"),
    ("EXTRA LEAN GROUND BEEF", "MEDIUM GROUND BEEF"), ("MILK 3 %", "MILK 1.5 %"), ("MILK 1.5 %", "MILK 15 %"),
    ("MILK 1.5 %", "MILK 0.5 %"), ("WHOLE MUSHROOMS 227 G", "WHOLE MUSHROOMS 454 G"), ("PACK OF 1", "PACK OF 12"),
    ("2 5 KG", "25 KG"), ("2.5KG", "25KG"), ("OMEGA3", "OMEGA6"), ("OMEGA3", "OMEGA"), ("VITAMIN B6", "VITAMIN B8"),
    ("SIRLOIN", "STRIPLOIN"), ("SIRLOIN GRILLING STEAK CLUB PACK", STEAK), ("BEEF", "BEER"), ("MILD", "MILK"),
    ("GOLD", "COLD"), ("SALTED BUTTER", "UNSALTED BUTTER"), ("SALTED", "UNSALTED"), ("MAIGRE", "MI-MAIGRE"),
    ("WHOLE MUSHROOMS", "WHITE MUSHROOMS"), ("CHICKEN BREAST", "CHICKEN BREAST SMOKED"), ("STRAWBERRY", "RASPBERRY"),
    ("GRILLING", "BRILLING"), ("SAFT", "SYLT"), ("LEAN", "LOIN"), ("EXTRA LEAN", "EXTRA LARGE"), ("BÄR", "BAR"),
    ("ÖL", "OL"), ("SUCRÉ", "SUCRE"), ("PURÉE SUCRÉE DE POMMES", "PUREE SUCREE DE POMMES"),
])  # fmt: skip
def test_twins_stay_apart_however_often_they_are_seen(one, other, counts):
    assert not together(one, other, counts=counts)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_twins_of_the_built_in_data_stay_apart(family, counts):
    for a, b in itertools.combinations(FAMILIES[family], 2):
        one, other = " ".join(a.variant), " ".join(b.variant)
        title = " ".join(a.title)
        phrases = ["{}", f"{{}} {title}", f"{title} {{}}", f"{a.brand} {{}} {title}", f"{a.brand} {title} {{}}"]
        for phrase in phrases:
            assert not together(phrase.format(one), phrase.format(other), counts=counts), phrase
        shared = [a.brand, title, *a.title]
        assert not together(one, other, *shared, counts=counts)


@pytest.mark.parametrize("counts", COUNTS)
def test_all_printed_words_of_the_built_in_data_stay_apart(counts):
    products = [product for twins in FAMILIES.values() for product in twins]
    words = sorted({word for p in products for word in (*p.brand.split(), *p.title, *p.variant)})
    assert len(words) > 40
    for one, other in itertools.combinations(words, 2):
        assert not together(one, other, counts=counts), (one, other)


def test_words_of_other_labels_are_never_merged():
    assert together("SMOKED HAM", "SMOKEY HAM")
    assert len(group(["SMOKED HAM", "SMOKEY HAM"], vocabulary=["smokey", "smoked"])) == 2
    assert len(group(["SMOKED HAM", "SMOKFD HAM"], [3, 1], vocabulary=["Smokey bacon"])) == 1


def test_misread_twins_never_share_a_group():
    twins = [STEAK, STEAK.replace("STRIPLOIN", "SIRLOIN"), "LEAN GROUND BEEF", "EXTRA LEAN GROUND BEEF"]
    twins += ["MILK 3%", "MILK 1.5%"]
    for seed in range(5):
        origin = {misread(twin, 0.05, seed=1000 * seed + n): twin for twin in twins for n in range(30)}
        for found in group(list(origin)):
            assert len({origin[text] for text in found.variants if text in origin}) <= 1, found


# -- Properties


def readings(seed, lines=60):
    """Misread lines of words, and how often each was seen."""
    rng = np.random.default_rng(seed)
    words = ["STRIPLOIN", "SIRLOIN", "GRILLING", "STEAK", "CLUB", "PACK", "LEAN", "EXTRA", "BEEF", "MILK", "3%", "1.5%"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(lines // 4)]
    texts = [misread(texts[rng.integers(len(texts))], 0.08, seed=n) for n in range(lines)]
    return [text for text in texts if text.strip()], rng


@pytest.mark.parametrize("seed", range(4))
def test_every_text_is_in_one_group_counts_add_up_and_order_does_not_matter(seed):
    texts, rng = readings(seed)
    counts = rng.integers(1, 20, len(texts))
    groups, total = group(texts, counts), Counter()
    for text, count in zip(texts, counts.tolist(), strict=True):
        total[phrases.normalise(text)] += count
    held = [item for found in groups for item in found.variants.items()]
    assert len(held) == len(dict(held)) > len(groups) and dict(held) == total
    for found in groups:
        assert found.count == sum(found.variants.values()) and found.canonical in found.variants
        assert list(found.variants.values()) == sorted(found.variants.values(), reverse=True)
    assert [found.count for found in groups] == sorted((found.count for found in groups), reverse=True)
    mixed = rng.permutation(len(texts))
    other = group([texts[i] for i in mixed], counts[mixed])
    assert groups == other and [list(a.variants) for a in groups] == [list(b.variants) for b in other]
    assert group(np.repeat(texts, counts).tolist()) == groups


# -- Later texts


def test_a_later_text_finds_its_group():
    groups = group([*SIX, "LEAN GROUND BEEF", "EXTRA LEAN GROUND BEEF", "MILK 3%"])
    texts = [SIX[2], "striploin grilling steak  clu8 pack", "LEAN GR0UND BEEF", "EXTRA LEAN GROUND BEEF", "milk 3 %"]
    found = [groups[place].canonical for place in match(texts, groups)]
    assert found == [STEAK, STEAK, "LEAN GROUND BEEF", "EXTRA LEAN GROUND BEEF", "MILK 3%"]
    later = ["MILK 1.5%", "SIRLOIN GRILLING STEAK CLUB PACK", "GROUND BEEF", "COFFEE", "", "MEDIUM GROUND BEEF"]
    assert match(later, groups) == [-1] * 6
    assert match([], groups) == [] and match(["MILK"], []) == [-1]
