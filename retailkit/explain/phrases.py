"""Which texts are one printed phrase, read differently by OCR?

Misread words (STRAK for STEAK) are corrected to the more frequent word that they resemble; texts whose corrected words
agree are one phrase. Phrases of look-alike products, which differ in one word or number, stay apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import extractOne

SIMILAR = 0.75  # share of letters that a misread word has in common with the right one
SHORT = 4  # letters: words of this length are misread only in `CONTEXT`; shorter ones must be equal
CONTEXT = 3  # other words that agree
DOMINANT = 3  # times that the right word is seen as often as a misread short word or a stump
DIGITS = str.maketrans("015826479", "OISBZGATG")  # letters that are read as digits
INITIALS = ("O0QDCG69", "I1LT7", "S5", "B8", "Z2", "UV", "EF", "A4", "NH")  # first letters that are taken for another
INITIAL = {letter: family[0] for family in INITIALS for letter in family}
_MARK = re.compile(r"(?<=\d)[.,/:×-](?=\d)|[^\W_]|[%+]")


@dataclass(frozen=True)
class Spelling:
    """One printed phrase: its most frequent reading (best without corrected words), and how often each was seen."""

    canonical: str
    variants: dict[str, int]
    count: int


def words_read_often(texts: Iterable[str], times: int = 3) -> list[str]:
    """Return the words that were read on so many of these texts or more: they are no misreadings."""
    counts = Counter(word for text in texts for word in set(text.split()))
    return [word for word, count in counts.items() if count >= times]


def normalise(text: str) -> str:
    """Return a text in upper case with single spaces and composed accents: what `Spelling` holds."""
    return " ".join(unicodedata.normalize("NFC", text).upper().split())


def group(
    texts: Sequence[str], counts: Sequence[int] | None = None, vocabulary: Collection[str] = ()
) -> list[Spelling]:
    """Group readings of the same printed phrase.

    - Numbers, accents and words of up to three letters never vary. Spaces do not matter, except between digits.
    - A word of five letters or more is corrected to the most similar word that is seen more often, if 75 % of the
      letters agree and the first letters look alike. A digit inside a word is the letter it looks like; RN is M.
    - A word of four letters may be misread (CLIB for CLUB) if three other words agree and the right one is seen at
      least `DOMINANT` times as often.
    - A phrase may be cut off at its end (STEAK CLU) if three words agree, half of the letters are left, no number is
      lost, and what is lost is seen `DOMINANT` times as often. Likewise the last of five or more words may be anything
      that begins alike (PIO for PACK). Cut so that it could be either of two phrases, it is kept apart.

    Case, spaces and the order of `texts` do not matter; blank ones are left out. `counts` says how often each was seen
    (None: once). `vocabulary` are texts, such as those of other products, whose words are no misreadings. Returns
    groups, most seen first; every reading is in one of them.
    """
    total: Counter = Counter()
    for text, count in zip(texts, [1] * len(texts) if counts is None else counts, strict=True):
        total[normalise(text)] += int(count)
    corpus = _Corpus({text: total[text] for text in sorted(total) if text}, vocabulary)
    members = defaultdict(list)
    for text in corpus.counts:
        members[corpus.phrase(text)].append(text)
    found = []
    for phrase, readings in members.items():
        order = sorted(readings, key=lambda text: (-corpus.counts[text], text))
        exact = [text for text in order if _words(text) == phrase]
        canonical = (exact or order)[0]
        order.sort(key=lambda text, first=canonical: (-corpus.counts[text], text != first, text))
        variants = {text: corpus.counts[text] for text in order}
        found.append(Spelling(canonical, variants, sum(variants.values())))
    return sorted(found, key=lambda spelling: (-spelling.count, spelling.canonical))


def match(texts: Sequence[str], groups: Sequence[Spelling], vocabulary: Collection[str] = ()) -> list[int]:
    """Return for each text the position of the group that it belongs to by the rules of `group`, -1 for none."""
    places = {variant: place for place, found in enumerate(groups) for variant in found.variants}
    corpus = _Corpus({variant: n for found in groups for variant, n in found.variants.items()}, vocabulary)
    phrases = {corpus.phrase(found.canonical): place for place, found in enumerate(groups)}
    return [places.get(name, phrases.get(corpus.phrase(name), -1)) if (name := normalise(t)) else -1 for t in texts]


Words = tuple[str, ...]


class _Corpus:
    """Texts, the right word for each of their words, and the whole phrase for each of their word sequences."""

    def __init__(self, counts: Mapping[str, int], vocabulary: Collection[str] = ()) -> None:
        self.counts = counts
        seen: Counter = Counter()
        for text, count in counts.items():
            seen.update(dict.fromkeys(_words(text), count))
        self.known = {word for text in vocabulary for word in _words(normalise(text))}
        self.right: dict[str, str] = {}
        self.heads: defaultdict = defaultdict(dict)  # folded -> word, by the first letter
        for word in sorted(seen, key=lambda word: (-seen[word], sum(map(str.isdigit, word)), word)):
            self.right[word] = self._corrected(word)
            if self.right[word] == word:
                self.heads[_initial(word)].setdefault(_fold(word), word)
        self.seen: Counter = Counter()
        for word, count in seen.items():
            self.seen[self.right[word]] += count
        self.total = total = Counter()
        for text, count in counts.items():
            total[self._sequence(text)] += count
        self.phrases: defaultdict = defaultdict(list)  # by their first word
        self.squeezed: dict[str, Words] = {}
        self.whole: dict[Words, Words] = {}
        for words in sorted(total, key=lambda words: (-len(words), -total[words], words)):
            self.whole[words] = self._whole(words)
            if self.whole[words] == words:
                self.phrases[words[:1]].append(words)
                self.squeezed.setdefault(_squeeze(words), words)

    def phrase(self, text: str) -> Words:
        """Return the words of the phrase that a text is a reading of."""
        words = self._sequence(text)
        return self.whole[words] if words in self.whole else self._whole(words)

    def _sequence(self, text: str) -> Words:
        return tuple(self.right.get(word) or self._corrected(word) for word in _words(text)) or (text,)

    def _corrected(self, word: str) -> str:
        """Return the more frequent word that this one is a misreading of, or itself."""
        folded, heads = _fold(word), self.heads[_initial(word)]
        if word in self.known or _is_number(word):
            return word
        if folded in heads:
            return heads[folded]
        if len(word) <= SHORT or not word.isalpha():
            return word
        choices = [head for head, right in heads.items() if len(head) > SHORT and right.isalpha()
                   and _plain(head) != _plain(folded)]  # fmt: skip
        best = extractOne(folded, choices, scorer=Levenshtein.normalized_similarity, score_cutoff=SIMILAR)
        return heads[best[0]] if best else word

    def _whole(self, words: Words) -> Words:
        """Return the phrase that these words are a reading of, or themselves."""
        if _squeeze(words) in self.squeezed:
            return self.squeezed[_squeeze(words)]
        found = [other for other in self.phrases[words[:1]] if self._is_reading(words, other)]
        same = [other for other in found if len(other) == len(words)]
        return same[0] if same else found[0] if len(found) == 1 else words

    def _is_reading(self, words: Words, right: Words) -> bool:
        wrong = [at for at, (a, b) in enumerate(zip(words, right, strict=False)) if a != b]
        last, agree = len(words) - 1, len(words) - len(wrong)
        if len(words) > len(right) or len(wrong) > 1 or agree < CONTEXT:
            return False
        if len(words) < len(right):
            lost = right[last:] if wrong else right[len(words) :]
            stump = not wrong or (wrong == [last] and right[last].startswith(words[last]) and len(words[last]) > 1)
            half = 2 * len("".join(words)) >= len("".join(right))
            rare = self._dominates(lost[0], words[last] if wrong else None)
            return stump and half and rare and not any(map(_is_number, lost))
        word, other = words[wrong[0]], right[wrong[0]]
        if _is_number(word) or _is_number(other) or not self._dominates(other, word):
            return False
        similar = min(len(word), len(other)) >= SHORT and Levenshtein.normalized_similarity(word, other) >= SIMILAR
        rubbish = wrong == [last] and agree > CONTEXT and len(word) <= len(other) + 1 and (word,) not in self.total
        return _initial(word) == _initial(other) and (similar or rubbish) and _plain(word) != _plain(other)

    def _dominates(self, right: str, word: str | None) -> bool:
        return self.seen[right] >= DOMINANT * max(1, self.seen[word])


def _words(text: str) -> Words:
    """Return what is compared: words without punctuation; numbers keep theirs, with their per cent sign."""
    plain = text.replace("'", "").replace("’", "")
    kept = [" "] * len(plain)
    for mark in _MARK.finditer(plain):
        kept[mark.start()] = mark.group()
    joined = re.sub(r"(?<=\d),(?=\d)", ".", "".join(kept))
    return tuple(re.sub(r"(?<=\d)\s+%", "%", joined).split())


def _squeeze(words: Words) -> str:
    """Return words without spaces, except for those between digits."""
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(words))


def _is_number(word: str) -> bool:
    """Say whether a word is a number (3%, 1.5L, 500ML) rather than one with misread letters (Y0GURT)."""
    marks = sum(not letter.isalpha() for letter in word)
    return any(letter.isdigit() for letter in word) and (2 * marks >= len(word) or not word.isalnum())


def _fold(word: str) -> str:
    """Return a word with letters in place of digits inside it, and M and W in place of RN and VV."""
    inside = re.sub(r"\d(?=.*[^\W\d])|(?<=[^\W\d]{4})\d$", lambda found: found.group().translate(DIGITS), word)
    return inside.replace("RN", "M").replace("VV", "W")


def _initial(word: str) -> str:
    return INITIAL.get(word[0], word[0])


def _plain(word: str) -> str:
    """Return a word without accents: words that differ only in them are different words."""
    return "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
