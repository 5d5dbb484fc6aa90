"""Texts to the terms that are indexed and asked for.

A word is a run of letters, digits and combining marks, after NFKC and case folding. Where words have no spaces between
them, each pair of neighbouring characters is one (McNamee and Mayfield, "Character N-Gram Tokenization for European
Language Text Retrieval", 2004). A passage has one language, told by the function words in it (Grefenstette, "Comparing
two language identification schemes", 1995). Its words are cut to their Snowball stem (Porter, 2001), and that to 8
letters, which lets German compounds meet; where the language is not known they are folded.

An index term is the number of a language (languages.py) as one byte, then the stem in UTF-8. A word that is asked for
stands for one index term of each language, of which a passage can only hold that of its own. So passages of many
languages lie in one index, and a stem of one language meets none of another. This module alone knows PyStemmer: stems
on disk must equal the stems asked for, so a release that changes one needs another number for its language.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, groupby

import Stemmer

from appliance.knowledge.index.languages import ALGORITHMS, ANY, FUNCTION_WORDS, NUMBERS, UNKNOWN

UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Ranges of characters whose words are not always parted by spaces, for a class of a regular expression."""

MAX_WORD_CHARACTERS = 60
"""Of a longer word the beginning is indexed: with its language an index term has 241 bytes at most."""

_STEM_CHARACTERS = 8
_WORDS_PER_EVIDENCE = 6  # of so many words one must be a function word of the language; in prose every third is
_ENOUGH_EVIDENCE = 5
_LAST_COMBINING = 0x1F000  # none above has a combining class, so they cannot be out of order


def _is_mark(character: str) -> bool:
    """Whether it belongs to the character before: a mark, or what NFKC turns into one."""
    decomposed = unicodedata.normalize("NFKD", character)
    return unicodedata.category(character)[0] == "M" or unicodedata.combining(decomposed[0]) > 0


def _class_of(codes: Iterable[int]) -> str:
    """The codes as ranges of a class of a regular expression."""
    runs = [[code for _, code in run] for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


_MARKS = _class_of(code for code in range(0x300, _LAST_COMBINING) if _is_mark(chr(code)))
_MARKS_OVER_30 = re.compile(f"([{_MARKS}]{{30}})[{_MARKS}]+")
_WORD = re.compile(r"[^\W_]+")
_MARKED_WORD = re.compile(rf"[\w{_MARKS}]+")
_UNUSUAL = re.compile(f"[{_MARKS}{UNSPACED}]")
_UNSPACED = re.compile(f"([{UNSPACED}]+)")
_NO_ENDING = re.compile(rf"[\d{UNSPACED}]")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


def words(text: str) -> list[str]:
    """The words of a text in order, none longer than MAX_WORD_CHARACTERS. Linear in the text, whatever it holds."""
    if text.isascii():
        found = text.translate(_ASCII).split()
    else:
        text = _normalized(text)
        found = _unusual_words(text) if _UNUSUAL.search(text) else _WORD.findall(text)
    return [word[:MAX_WORD_CHARACTERS] for word in found]


class Words(dict[str, list[str]]):
    """The words of what stands between white space, by that: much text is read fast, because it repeats itself."""

    def of(self, text: str) -> list[str]:
        """As `words`."""
        return list(chain.from_iterable(map(self.__getitem__, text.split())))

    def __missing__(self, token: str) -> list[str]:
        found = self[token] = words(token)
        return found


def _normalized(text: str) -> str:
    if not unicodedata.is_normalized("NFKC", text):
        # quadratic in a run of marks; 30 are what Unicode's stream-safe format allows (UAX 15)
        text = unicodedata.normalize("NFKC", _MARKS_OVER_30.sub(r"\1", text))
    return text.casefold()


def _unusual_words(text: str) -> list[str]:
    # the Turkish dotted I folds to two characters, which other languages write as one
    found = _MARKED_WORD.findall(text.replace("i\u0307", "i").replace("_", " "))
    return [piece for word in found for piece in _pieces(word)]


def _pieces(word: str) -> Iterable[str]:
    """The word itself, or where its characters have no spaces between them, each two neighbours."""
    for part in filter(None, _UNSPACED.split(word)):
        if _UNSPACED.match(part):
            yield from (part[at : at + 2] for at in range(max(1, len(part) - 1)))
        else:
            yield part


_LANGUAGES_OF: dict[str, list[int]] = defaultdict(list)
for _language, _function_words in FUNCTION_WORDS.items():
    for _function_word in words(_function_words):
        _LANGUAGES_OF[_function_word].append(NUMBERS[_language])
_FUNCTION_WORDS = frozenset(_LANGUAGES_OF)


def language_of(found: Sequence[str]) -> int:
    """The number of the language that `words` are of: the one with most function words among them, or UNKNOWN."""
    held = _FUNCTION_WORDS.intersection(found)
    tally = Counter(chain.from_iterable(map(_LANGUAGES_OF.__getitem__, held))).most_common(2)
    least = min(len(found) / _WORDS_PER_EVIDENCE, _ENOUGH_EVIDENCE)
    if not tally or tally[0][1] < least or (len(tally) > 1 and tally[0][1] == tally[1][1]):
        return UNKNOWN
    return tally[0][0]


def index_terms(found: Sequence[str], language: int) -> list[bytes]:
    """The index term of each of `words` in a passage of that language."""
    if language in ALGORITHMS:
        stemmer = Stemmer.Stemmer(ALGORITHMS[language], 0)  # one for each call: it is not safe to share
        stems = [stem[:_STEM_CHARACTERS] for stem in stemmer.stemWords(list(found))]
    else:
        stems = [_fold(word) for word in found]
    tag, untagged = bytes([language]), bytes([ANY])
    return [
        untagged + word.encode() if _NO_ENDING.search(word) else tag + (stem or word).encode()
        for word, stem in zip(found, stems, strict=True)
    ]


def forms(found: Sequence[str]) -> list[tuple[bytes, ...]]:
    """For each of `words`, the index terms that it can be, ascending: of each language one at most."""
    by_language = [index_terms(found, language) for language in (UNKNOWN, *NUMBERS.values())]
    return [tuple(dict.fromkeys(terms)) for terms in zip(*by_language, strict=True)]


def folded(text: str) -> list[str]:
    """The words of a text without their endings, in any language alike: what compares two sentences.

    Folding drops a plural s, then keeps the first 7 letters of a word (6 in Cyrillic): the truncation of McNamee,
    Nicholas and Mayfield (SIGIR 2009), which needs no word list of a language. Words with digits are kept whole.
    """
    return [_fold(word) for word in words(text)]


def _fold(word: str) -> str:
    if not word.isalpha() or _UNSPACED.match(word):
        return word
    if "а" <= word[0] <= "ё":
        return word[:6]
    if len(word) > 3 and word.endswith("s") and word[-2] not in "us":
        word = f"{word[:-3]}y" if word.endswith("ies") and len(word) > 4 else word[:-1]
    return word[:7]
