"""Which texts are one printed phrase, read differently?

OCR misreads letters (STRAK for STEAK), photos cut phrases off (STEAK CLU), and twins differ in one word or number. The
first two belong together, twins never. Rules tell them apart, not a limit on the whole text: a limit that joins the
first two joins LEAN and EXTRA LEAN as well.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from retailkit.config import UsageError

# What readers take for each other. A digit inside a word is a misreading for sure; of two letters either may be right.
EVIDENT = {frozenset(pair) for pair in ("0O", "0D", "1I", "1L", "1T", "5S", "8B", "2Z", "6G", "7T", "4A", "9G")}
ALIKE = {frozenset(pair) for pair in ("OQ", "OD", "CO", "IL", "IT", "GC", "EF", "UV", "NH")}
MELTED = {("RN", "M"), ("M", "RN"), ("VV", "W"), ("W", "VV")}
COST_EVIDENT, COST_ALIKE, COST_EDIT, NEVER = 1, 5, 10, 1000
CLOSE, LOOSE, LOOSE_MOST = 1.5, 2.5, 20  # costs allowed a letter, and at most: 15 %, 25 % and two edits
SHORT = 4  # letters: a word so long needs `CONTEXT` to be misread, shorter ones must be equal
CONTEXT = 3  # other words that agree
DOMINANT = 4  # times that a word is seen for each sight of what is taken for its misreading
OFTEN, RARELY = 5, 10  # seen so often, and not so many times less often than the other: a word in its own right
FAMILIES = ("O0QDCG69", "I1LT7", "S5", "B8", "Z2", "UV", "EF", "A4", "NH")  # what hangs together by those pairs
EDITS = 2  # between families of letters: from three on words are not looked at

_ACCENT = re.compile(r"(?<=[A-Z])[\u0300-\u036f]+")
_MARK = re.compile(r"(?<=\d)[.,/:×-](?=\d)|[^\W_]|[%+]")
_FAMILY = str.maketrans({letter: family[0] for family in FAMILIES for letter in family})


@dataclass(frozen=True)
class Spelling:
    """One printed phrase.

    Attributes:
        canonical: the reading that the others are explained by.
        variants: how often each reading was seen, most often first; the canonical one is among them.
        count: how often all of them were seen.
    """

    canonical: str
    variants: dict[str, int]
    count: int


def normalise(text: str) -> str:
    """Return a text in upper case with single spaces: what `Spelling` holds."""
    return " ".join(text.upper().split())


def group(texts: Sequence[str], counts: Sequence[int] | None = None) -> list[Spelling]:
    """Group readings of the same printed phrase.

    One reading may be another one misread or cut off if their words agree one by one from the first on:

    - A number never varies, nor does a word of up to three letters. 3 % and 3% are the same.
    - A word is misread if its first letters are equal or alike and few others differ: a digit for a letter is evident
      (Y0GURT), letters that look alike cost half an edit (SIEAK), rn for m too. Up to 15 % of the letters may differ in
      any word of five letters or more. Up to 25 %, and two edits, may differ where the right word is seen at least
      `DOMINANT` times as often (STRAK); then a word of four letters may differ as well if three other words agree
      (CLIB). At most half of the words of a phrase may differ so much.
    - A word is read as the nearest one of those that are seen more often, or as one that is nearer still.
    - A word that is established is no misreading. That is a word seen at least `OFTEN` times, alone or in different
      texts, unless the other one is seen more than `RARELY` times as often. So BEEF and BEER never join alone, because
      they are short; in long phrases they join where one is rare and the other one frequent, and stay apart where both
      are seen often. Digits for letters join however often they are seen.
    - A phrase is cut off if three words agree, half of the letters are left, no number is lost, and what is cut is seen
      `DOMINANT` times as often as what is left (STEAK CLU). Cut so that it could be either of two phrases, it is kept
      apart. A missing first word makes another product.
    - The last of five or more words may be anything that begins alike, where the right one is seen `DOMINANT` times as
      often (PIO for PACK), unless it is established or stands alone anywhere.
    - Texts that differ only in their spaces are equal, except for spaces between digits.

    Every member of a group is a reading of the canonical one, so that groups cannot chain (star clustering). Canonical
    is what explains most readings, each as often as it was seen.

    Args:
        texts: readings; case and spaces are ignored, blank ones are left out.
        counts: how often each was seen, 1 or more; None counts each once. Equal texts add up.

    Returns:
        Groups, most seen first. Every reading is in one of them. The order of `texts` does not matter.

    Raises:
        UsageError: a count is missing or not positive.
    """
    corpus = _Corpus(_counted(texts, counts))
    links = {text: corpus.link(text) for text in corpus.counts}
    readers = defaultdict(list)
    for reading, found in links.items():
        for text in found:
            readers[text].append(reading)
    weight = {text: n + sum(corpus.counts[r] for r in readers[text]) for text, n in corpus.counts.items()}
    order = sorted(corpus.counts, key=lambda text: (-weight[text], -corpus.counts[text], *corpus.doubts(text)))
    leaders, covered = [], set()
    for text in order:
        if text not in covered:
            leaders.append(text)
            covered |= {text, *readers[text]}
    rank = {text: place for place, text in enumerate(leaders)}
    members = defaultdict(list)
    for text in corpus.counts:
        members[text if text in rank else _best(links[text], rank) or text].append(text)
    return sorted((_spelling(head, inside, corpus.counts) for head, inside in members.items()), key=_place)


def match(texts: Sequence[str], groups: Sequence[Spelling]) -> list[int]:
    """Return for each text the position of the group that it belongs to, -1 for none.

    A text belongs to the group that holds it, else to the one whose canonical phrase it may be a reading of, by the
    rules of `group`.
    """
    places = {variant: place for place, found in enumerate(groups) for variant in found.variants}
    rank = {found.canonical: place for place, found in enumerate(groups)}
    corpus = _Corpus({variant: n for found in groups for variant, n in found.variants.items()})
    for text in dict.fromkeys(map(normalise, texts)):
        if text and text not in places:
            best = corpus.read_once(text, rank)
            places[text] = -1 if best is None else rank[best]
    return [places.get(normalise(text), -1) for text in texts]


def _counted(texts: Sequence[str], counts: Sequence[int] | None) -> Counter:
    if isinstance(texts, str):
        raise UsageError(f"texts={texts!r} is one text; give a list of them")
    counts = [1] * len(texts) if counts is None else list(counts)
    if len(counts) != len(texts):
        raise UsageError(f"{len(counts)} counts for {len(texts)} texts; give one each")
    total: Counter = Counter()
    for text, count in zip(texts, counts, strict=True):
        if count < 1:
            raise UsageError(f"{text!r} has count {count}; leave out what was not seen")
        if name := normalise(text):
            total[name] += count
    return Counter({text: int(total[text]) for text in sorted(total)})


def _spelling(canonical: str, inside: list[str], counts: Counter) -> Spelling:
    order = sorted(inside, key=lambda text: (-counts[text], text != canonical, text))
    return Spelling(canonical, {text: counts[text] for text in order}, sum(counts[text] for text in inside))


def _place(found: Spelling) -> tuple[int, str]:
    return -found.count, found.canonical


def _best(found: dict[str, _Link], rank: dict[str, int]) -> str | None:
    """Return the phrase that a reading belongs to, None where it was cut off so that it could be several."""
    there = {text: link for text, link in found.items() if text in rank}
    whole = [text for text, link in there.items() if not link.cut]
    if not whole and len(there) != 1:
        return None
    return min(whole or there, key=lambda text: (there[text].cost, rank[text]))


# -- Texts


class _Link(NamedTuple):
    """How one text is read as another: what differs, and whether it was cut off."""

    cost: int
    cut: bool


class _Misreading(NamedTuple):
    """How one word is read as another: what differs, whether that is much, and whether it needs `CONTEXT`."""

    cost: int
    much: bool
    short: bool


class _Corpus:
    """Texts with their words, and how often each word was seen.

    Args:
        counts: of normalised texts.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.counts: dict[str, int] = {}
        self.words: dict[str, tuple[str, ...]] = {}
        self.seen: Counter = Counter()
        self.texts: Counter = Counter()  # distinct ones that hold a word
        self.alone: Counter = Counter()  # distinct ones that are this word and no other
        self.starts: defaultdict = defaultdict(list)  # the texts that begin with these words
        self.after: defaultdict = defaultdict(dict)  # the words that follow these
        self.squeezed: defaultdict = defaultdict(list)  # the texts that are equal without spaces
        for text, count in counts.items():
            self._add(text, count)
        self.near = _near_words(self.seen, self.seen)

    def _add(self, text: str, count: int) -> None:
        words = _words(text)
        self.counts[text], self.words[text] = count, words
        self._count(words, count, 1)
        for k, word in enumerate(words):
            self.starts[words[: k + 1]].append(text)
            self.after[words[:k]][word] = None
        self.squeezed[_squeeze(words) or text].append(text)

    def _count(self, words: tuple[str, ...], count: int, texts: int) -> None:
        for word in set(words):
            self.seen[word] += count
            self.texts[word] += texts
        if len(words) == 1:
            self.alone[words[0]] += texts

    def doubts(self, text: str) -> tuple:
        """Return how little a text looks like the right reading; its name decides in the end."""
        words = self.words[text]
        mixed = sum(any(c.isdigit() for c in word) and not _is_number(word) for word in words)
        return mixed, -sum(self.seen[word] for word in words), -len(_shape(text)), len(text), text

    def read_once(self, text: str, rank: Mapping[str, int]) -> str | None:
        """Return which of the texts `rank` a new text, seen once, is a reading of; it is forgotten again."""
        words = _words(text)
        self.near.update(_near_words(set(words) - self.near.keys(), self.near))
        self._count(words, 1, 1)
        found = self._linked(text, words, 1)
        self._count(words, -1, -1)
        return _best(found, rank)

    def link(self, text: str) -> dict[str, _Link]:
        """Return which other texts a text may be a reading of."""
        return self._linked(text, self.words[text], self.counts[text])

    def _linked(self, text: str, words: tuple[str, ...], count: int) -> dict[str, _Link]:
        found = {other: _Link(COST_EVIDENT, False) for other in self.squeezed.get(_squeeze(words), ()) if other != text}
        for other in self._candidates(words):
            if other != text and (link := self._read(words, self.words[other], count)):
                found[other] = link
        return found

    def _candidates(self, words: tuple[str, ...]) -> Iterator[str]:
        """Yield the texts whose words are near these but for the last, which may be a stump or rubbish."""
        starts = [()] if words else []
        for word in words[:-1]:
            longer = ((*start, other) for start in starts for other in self.near.get(word, (word,)))
            starts = [start for start in longer if start in self.starts]
        for start in starts:
            for other in self.after.get(start, ()):
                stump = len(words) > CONTEXT and other.startswith(words[-1])
                rubbish = len(words) > CONTEXT + 1 and self._garbled(words[-1], other)
                if other == words[-1] or stump or rubbish or other in self.near.get(words[-1], ()):
                    yield from self.starts[(*start, other)]

    def _read(self, words: tuple[str, ...], right: tuple[str, ...], count: int) -> _Link | None:
        """Return how `words`, seen `count` times, are a reading of the words `right`."""
        if len(words) > len(right):
            return None
        pairs = [self._misread(word, other) for word, other in zip(words, right, strict=False)]
        if len(words) == len(right):
            if (cost := _whole(pairs)) is not None:
                return _Link(cost, False)
            if len(words) > CONTEXT + 1 and self._garbled(words[-1], right[-1]):
                cost = _whole(pairs[:-1])
                return None if cost is None else _Link(cost + LOOSE_MOST, False)
        return self._cut(words, right, pairs, count)

    def _misread(self, word: str, right: str) -> _Misreading | None:
        """Return how `word` is a misreading of `right`."""
        if word == right:
            return _Misreading(0, False, False)
        cost, length = _cost(word, right), max(len(word), len(right))
        if cost > min(LOOSE_MOST, LOOSE * length):
            return None
        short = min(len(word), len(right)) <= SHORT
        if any(_cost(word, other) < cost and self.seen[other] > self.seen[word] for other in self.near[word][1:]):
            return None
        if cost < COST_ALIKE:
            return _Misreading(cost, False, False)
        if self._established(word, right):
            return None
        if cost <= CLOSE * length and not short:
            return _Misreading(cost, False, False)
        return _Misreading(cost, True, short) if self._dominates(right, self.seen[word]) else None

    def _established(self, word: str, other: str) -> bool:
        own = self.alone[word] or self.texts[word] > 1
        return bool(own) and self.seen[word] >= OFTEN and RARELY * self.seen[word] >= self.seen[other]

    def _dominates(self, right: str, seen: int) -> bool:
        return self.seen[right] >= DOMINANT * seen

    def _garbled(self, word: str, right: str) -> bool:
        """Tell whether a last word may be rubbish in place of the right one."""
        if self.alone[word] or self._established(word, right) or not self._dominates(right, self.seen[word]):
            return False
        fits = _alike(word[0], right[0]) and len(word) <= len(right) + 1
        return fits and not _is_number(word) and not _is_number(right)

    def _cut(self, words: tuple[str, ...], right: tuple[str, ...], pairs: list, count: int) -> _Link | None:
        """Return how the words `right` were cut off, within a word or after one."""
        last = right[len(words) - 1]
        stump = words[-1] if last != words[-1] and last.startswith(words[-1]) else ""
        whole = len(words) - bool(stump)
        lost = right[whole:]
        if whole < CONTEXT or not lost or len(stump) == 1 or any(_is_number(word) for word in lost):
            return None
        if 2 * len("".join(words)) < len("".join(right)):
            return None
        if not self._dominates(lost[0], self.seen[stump] if stump else count):
            return None
        cost = _whole(pairs[:whole])
        return None if cost is None else _Link(cost, True)


def _whole(pairs: list[_Misreading | None]) -> int | None:
    """Return the cost of words that are misread at most; None where too much differs."""
    if None in pairs:
        return None
    much = sum(pair.much for pair in pairs)
    lonely = any(pair.short for pair in pairs) and len(pairs) - much < CONTEXT
    return None if lonely or 2 * much > max(len(pairs), 2) else sum(pair.cost for pair in pairs)


def _words(text: str) -> tuple[str, ...]:
    """Return what is compared: words without accents and punctuation; numbers keep theirs, with their per cent sign."""
    plain = _ACCENT.sub("", unicodedata.normalize("NFKD", text)).replace("'", "").replace("’", "")
    kept = [" "] * len(plain)
    for mark in _MARK.finditer(plain):
        kept[mark.start()] = mark.group()
    joined = re.sub(r"(?<=\d),(?=\d)", ".", unicodedata.normalize("NFC", "".join(kept)))
    return tuple(re.sub(r"(?<=\d)\s+%", "%", joined).split())


def _squeeze(words: tuple[str, ...]) -> str:
    """Return words without spaces, except for those between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(words))


@lru_cache(maxsize=2**16)
def _is_number(word: str) -> bool:
    """Tell numbers (3%, 1.5L, 500ML) from words with misread letters (Y0GURT)."""
    marks = sum(not c.isalpha() for c in word)
    return any(c.isdigit() for c in word) and (2 * marks >= len(word) or not word.isalnum())


# -- Words


def _alike(a: str, b: str) -> bool:
    return a == b or frozenset((a, b)) in EVIDENT or frozenset((a, b)) in ALIKE


def _near_words(asked: Iterable[str], known: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return for each word asked for that may be misread which known words it may be, itself first."""
    ours, theirs = _by_first_letter(asked), _by_first_letter(known)
    near = {}
    for first, words in ours.items():
        rows, columns = (list(map(_shape, some)) for some in (words, theirs[first]))
        close = cdist(rows, columns, scorer=Levenshtein.distance, score_cutoff=EDITS, dtype=np.uint8) <= EDITS
        for word, row in zip(words, close, strict=True):
            others = (theirs[first][i] for i in np.flatnonzero(row))
            near[word] = (word, *(other for other in others if other != word and _cost(word, other) <= LOOSE_MOST))
    return near


def _by_first_letter(words: Iterable[str]) -> dict[str, list[str]]:
    """Return words that may be misread, sorted, by what their first letters are alike to."""
    found = defaultdict(list)
    for word in sorted(words):
        if len(word) >= SHORT and not _is_number(word):
            found[word[0].translate(_FAMILY)].append(word)
    return found


def _shape(word: str) -> str:
    """Return a word in which letters that look alike are equal."""
    return word.replace("RN", "M").replace("VV", "W").translate(_FAMILY)


@lru_cache(maxsize=2**16)
def _cost(a: str, b: str) -> int:
    """Return the weighted Levenshtein distance of two words; `NEVER` or more where neither can be the other."""
    if min(len(a), len(b)) < SHORT or _is_number(a) or _is_number(b) or not _alike(a[0], b[0]):
        return NEVER
    if Levenshtein.distance(_shape(a), _shape(b)) > EDITS:
        return NEVER
    grid = np.zeros((len(a) + 1, len(b) + 1), int).tolist()
    for i, j in product(range(len(a) + 1), range(len(b) + 1)):
        ways = []
        if i:
            ways.append(grid[i - 1][j] + _loss(a[i - 1]))
        if j:
            ways.append(grid[i][j - 1] + _loss(b[j - 1]))
        if i and j:
            ways.append(grid[i - 1][j - 1] + _swap(a[i - 1], b[j - 1]))
        for m, n in ((2, 1), (1, 2)):
            if i >= m and j >= n and (a[i - m : i], b[j - n : j]) in MELTED:
                ways.append(grid[i - m][j - n] + COST_ALIKE)
        grid[i][j] = min(ways, default=0)
    return grid[-1][-1]


def _loss(letter: str) -> int:
    return NEVER if letter.isdigit() else COST_EDIT


def _swap(a: str, b: str) -> int:
    if a == b:
        return 0
    if frozenset((a, b)) in EVIDENT:
        return COST_EVIDENT
    if a.isdigit() or b.isdigit():
        return NEVER
    return COST_ALIKE if frozenset((a, b)) in ALIKE else COST_EDIT
