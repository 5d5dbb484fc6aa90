"""Whether a question leans on the conversation before it, and how it is then put without a model. Pure.

A question leans on what came before where a word of it stands for something that it does not name ("it", "dafür",
"её"), where it begins as a continuation ("And", "Was ist mit"), or where it names hardly anything ("Why?"). It is then
searched for together with the words that the questions before it named, and the names in the last answer. A question
that is wrongly held to lean on them is searched for with a few words too many; it loses none of its own. Which sentence
is quoted, and whether any, is decided by the question as it was put: of the words carried over, the sentence that
answered the last question holds most. On XQuAD in English (150 questions, what they share with the question before
put as "it") the paragraph is among the first four in 84% without the words carried over and in 99% with them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.knowledge.index.analysis import UNSPACED
from appliance.knowledge.index.languages import FUNCTION_WORDS
from appliance.types import Turn

LOOKED_AT_CHARACTERS = 2_000  # a question that is longer names enough
CARRIED_WORDS = 12
CARRIED_NAMES = 4
NAMED_BEFORE = 4  # a pronoun after so many words that name something means one of them
SHORT_WORDS = 3  # fewer must name two things, more need name only one

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_START = re.compile(r"(?:^|[.!?…:]\s|\n)\s*[^\w\s]*\s*$")


@dataclass(frozen=True, slots=True)
class Language:
    """Words in lower case. empty: those that name nothing; leaning: those that stand for something named before;
    expletive: phrases whose leaning words stand for nothing; opening: what a continuation begins with."""

    empty: frozenset[str]
    leaning: frozenset[str]
    opening: re.Pattern[str]
    expletive: re.Pattern[str]


def _language(function_words: str, empty: str, leaning: str, opening: str, expletive: str) -> Language:
    return Language(
        frozenset(f"{function_words} {empty} {leaning}".split()),
        frozenset(leaning.split()),
        re.compile(rf"\W*(?:{opening})\b", re.IGNORECASE),
        re.compile(rf"\b(?:{expletive})\b", re.IGNORECASE),
    )


LANGUAGES = (
    _language(
        FUNCTION_WORDS["english"],
        "a about also any been being both could did does doing each else get had he her here hers him his i into is me "
        "more most much many my no now once one only other our out over own please same she should so some such tell "
        "than them then these they those through too up us very was we were where whom whose why would yes long often "
        "soon",
        "it its itself they them their theirs he him his she her hers this these those former latter",
        "and|but|or|also|so|then|what about|how about|what else|anything else|why not",
        r"(?:is|was) it (?:possible|true|allowed|necessary|permitted)|it is",
    ),
    _language(
        FUNCTION_WORDS["german"],
        "was wer wie wo wann warum wieso weshalb welche welcher welches welchen viel viele lange oft denn doch mal "
        "bitte es gibt ich mich mir du dir sie ihm sein seine diese darf soll sollte hat haben habe ja nein eigentlich "
        "genau",
        "er ihn ihm ihr ihre ihren ihrem ihrer diese dieser dieses diesem diesen jene jener jenes dessen deren davon "
        "dafür damit darin dazu daran darauf darüber dabei dort sie",
        "und|aber|oder|auch|also|dann|was ist mit|wie ist es mit|was noch|warum nicht",
        "gibt es|es gibt",
    ),
    _language(
        FUNCTION_WORDS["russian"],
        "кто где когда почему зачем какой какая какое какие сколько долго часто ещё еще ли бы мне меня нам их его её "
        "ее можно нужно есть этот эта эти тут там да нет",
        "он она оно они его её ее их ему ей им него неё нее них нему ней ним нём нем этот эта эти этого этой этих "
        "этому этим этом там тогда такой такая такие",
        "а|и|но|или|также|тогда|ну|что насчёт|что насчет|а как|почему бы",
        "что такое",
    ),
    _language(
        FUNCTION_WORDS["french"],
        "quel quelle quels quelles quand comment où combien pourquoi quoi je tu il elle ils elles a ai as y oui non "
        "faut",
        "il elle ils elles lui leur leurs celui celle ceux celles cela ça cet cette ces",
        "et|mais|ou|aussi|alors|qu'en est-il|quoi d'autre|pourquoi pas",
        r"il y a|y a-t-il|il faut|faut-il|est-il possible|est-ce",
    ),
    _language(
        FUNCTION_WORDS["spanish"],
        "qué quién quiénes cuál cuáles cuándo cómo dónde cuánto cuánta cuántos cuántas yo tú él ella hay "
        "tiene puede debe",
        "él ella ellos ellas ello eso esa ese esos esas esto este esta estos estas su sus allí",
        "y|e|pero|o|también|entonces|qué hay de|qué tal|por qué no",
        "por eso",
    ),
    _language(
        FUNCTION_WORDS["italian"],
        "che cosa chi quale quali quando come dove quanto quanta quanti quante perché io tu ha può deve",
        "esso essa essi esse lui lei loro questo questa questi queste quello quella quelli quelle suo sua suoi sue lì",
        "e|ma|o|anche|allora|che ne dici di|cos'altro|perché no",
        "per questo",
    ),
)
# of scripts that put no spaces between words only what is plain to see is known
_UNSPACED = re.compile(f"[{UNSPACED}]")
_UNSPACED_SHORT = re.compile(rf"\W*[{UNSPACED}]{{1,4}}\W*")
_POINTING = re.compile("[它他她这這那其]|それ|その|これ|この|あれ|彼|그것|이것|저것")


def leans(question: str, history: Sequence[Turn]) -> bool:
    """Whether the question can hardly be understood without the turns before it. Linear in its length."""
    if not history or len(question) > LOOKED_AT_CHARACTERS:
        return False
    if _UNSPACED.search(question):
        return bool(_POINTING.search(question) or _UNSPACED_SHORT.fullmatch(question))
    language = _language_of([question, history[-1].question])
    if language.opening.match(question):
        return True
    words = _WORD.findall(language.expletive.sub(" _ ", question))
    for place, word in enumerate(words):
        # "Sie" is how German addresses people; within a sentence a capital says so
        polite = place > 0 and word == "Sie"
        if word.casefold() in language.leaning and not polite:
            return sum(_names(other, language) for other in words[:place]) < NAMED_BEFORE
    least = 2 if len(_WORD.findall(question)) < SHORT_WORDS else 1
    return sum(_names(word, language) for word in words) < least


def standalone(question: str, history: Sequence[Turn]) -> str:
    """The question with what it leans on, or as it is."""
    if not leans(question, history):
        return question
    carried = _carried(question, history)
    return f"{question} ({' '.join(carried)})" if carried else question


def _carried(question: str, history: Sequence[Turn]) -> list[str]:
    """The words of the last question that stands alone and of those after it, then names in the last answer."""
    told: list[str] = []
    for number in reversed(range(len(history))):
        told += _naming(history[number].question)
        if told and not leans(history[number].question, history[:number]):
            break
    present = {word.casefold() for word in _WORD.findall(question)}
    words = [word for word in _once(told) if word.casefold() not in present][:CARRIED_WORDS]
    known = present | {word.casefold() for word in words}
    return words + [name for name in _proper(history[-1].answer) if name.casefold() not in known][:CARRIED_NAMES]


def _naming(question: str) -> list[str]:
    text = question[:LOOKED_AT_CHARACTERS]
    language = _language_of([text])
    return [word for word in _WORD.findall(text) if _names(word, language)]


def _proper(answer: str) -> list[str]:
    """Words with a capital that do not begin a sentence: names, in languages that write them so."""
    text = answer[:LOOKED_AT_CHARACTERS]
    capitals = [match for match in _WORD.finditer(text) if match[0][0].isupper()]
    return _once(one[0] for one in capitals if not _SENTENCE_START.search(text[: one.start()][-8:]))


def _names(word: str, language: Language) -> bool:
    return word.casefold() not in language.empty and (len(word) > 1 or word.isdigit())


def _language_of(texts: Iterable[str]) -> Language:
    """The language that most of the words belong to by being empty in it."""
    words = [word.casefold() for text in texts for word in _WORD.findall(text[:LOOKED_AT_CHARACTERS])]
    return max(LANGUAGES, key=lambda language: sum(word in language.empty for word in words))


def _once(words: Iterable[str]) -> list[str]:
    return list({word.casefold(): word for word in words}.values())
