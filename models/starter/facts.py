"""Invented facts about towns, devices, people, workplaces, projects and species, from the templates of facts.json.

They teach question types ("how heavy", "who runs") that pseudo-questions from prose don't hold, and hard negatives: the
same attribute of another thing, another attribute of the same thing, a thing that no passage names.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from models.starter.corpus import listed
from models.starter.wordnet import Instance

ONSETS = listed("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh sk st t th tr v w z")
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ou", "io", "ae"]
CODAS = ["n", "r", "l", "s", "t", "k", "m", "d", "x", "nd", "rt", "lm", "ss", "th", "v"]
FIRST_NAMES = listed(
    "Anna Omar Lucia Peter Mei Ivan Sara Tom Nadia Felix Ruth Hugo Amira Jonas Elena Victor Priya Martin Clara Daniel "
    "Fatima George Helen Karl Laura Mikhail Nora Oscar Paula Quentin Rosa Stefan Tara Umar Vera Walter Yuki Zoe"
)
MONTHS = listed("January February March April May June July August September October November December")
POLITE = ("Please tell me: ", "Hi, ", "Question: ", "I would like to know: ")
PRONOUNS = {"town": ("It",), "device": ("It",), "project": ("It",), "species": ("It",), "person": ("He", "She")}
BIRTH_QUESTIONS = ("When was {e} born?", "In what year was {e} born?", "What is the birth year of {e}?")
DEATH_QUESTIONS = ("When did {e} die?", "In what year did {e} pass away?", "What is the year of death of {e}?")
PLACE_QUESTIONS = ("Where was {e} born?", "In which country was {e} born?", "What is the birthplace of {e}?")


@dataclass(frozen=True)
class Attribute:
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """Passages of sentences; questions, each with the number of its sentence counted over all passages, or -1."""

    passages: tuple[tuple[str, ...], ...]
    questions: tuple[tuple[str, int], ...]


def load_domains() -> dict[str, tuple[Attribute, ...]]:
    rows = json.loads(Path(__file__).with_name("facts.json").read_text())
    return {
        name: tuple(Attribute(a["value"], tuple(a["statements"]), tuple(a["questions"])) for a in attributes)
        for name, attributes in rows.items()
    }


DOMAINS = load_domains()


def invented_name(rng: Random) -> str:
    def syllable() -> str:
        return rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if rng.random() < 0.5 else "")

    return "".join(syllable() for _ in range(rng.choice((1, 2, 2, 2, 3)))).capitalize()


def person(rng: Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {invented_name(rng)}"


def date(rng: Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1850, 2026)
    return rng.choice(
        (f"{day} {month} {year}", f"{month} {day}, {year}", str(rng.randint(1500, 2026)), f"{month} {year}")
    )


def clock(rng: Random) -> str:
    return f"{rng.randint(1, 12)}:{rng.choice(('00', '15', '30', '45'))} {rng.choice(('a.m.', 'p.m.'))}"


def email(rng: Random) -> str:
    return f"{invented_name(rng)}@{invented_name(rng)}.{rng.choice(('org', 'net', 'com', 'example'))}".lower()


VALUES: dict[str, Callable[[Random], str]] = {
    "date": date,
    "person": person,
    "name": invented_name,
    "clock": clock,
    "email": email,
    "telephone": lambda rng: f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(1000, 9999)}",
    "room": lambda rng: f"room {rng.randint(1, 900)}",
    "award": lambda rng: f"the {invented_name(rng)} {rng.choice(('Prize', 'Medal', 'Award'))}",
}
ENTITIES: dict[str, Callable[[Random], str]] = {
    "town": lambda rng: invented_name(rng) + rng.choice(("", "", "ton", "ville", " Bay", "burg")),
    "device": lambda rng: f"{invented_name(rng)}{rng.choice((' ', '-', ' Pro ', ' Mk '))}{rng.randint(1, 990)}",
    "person": person,
    "policy": lambda rng: (
        f"the {invented_name(rng)} " + rng.choice(("office", "team", "company", "branch", "plant", "library", "clinic"))
    ),
    "project": lambda rng: f"project {invented_name(rng)}",
    "species": lambda rng: (
        f"the {invented_name(rng).lower()} " + rng.choice(("bird", "frog", "tree", "fish", "moth", "bear"))
    ),
}


def value(rng: Random, rule: str) -> str:
    """A value by a rule of facts.json: a name of VALUES, "number LOW HIGH", or "choice A|B|C"."""
    kind, _, rest = rule.partition(" ")
    if kind == "number":
        low, high = map(int, rest.split())
        n = rng.randint(low, high)
        return f"{n:,}" if rng.random() < 0.6 else str(n)
    return rng.choice(rest.split("|")) if kind == "choice" else VALUES[kind](rng)


def upper_first(text: str) -> str:
    return text[0].upper() + text[1:]


@dataclass(frozen=True)
class Passage:
    entity: str
    sentences: tuple[str, ...]
    questions: tuple[tuple[str, ...], ...]  # the question templates that each sentence answers
    missing: tuple[tuple[str, ...], ...]  # templates about the same entity that no sentence answers


def passage(rng: Random, domain: str) -> Passage:
    """A few facts of one invented thing; later sentences may say "it" for its name."""
    entity, attributes = ENTITIES[domain](rng), DOMAINS[domain]
    told = rng.sample(attributes, min(rng.randint(2, 6), len(attributes)))
    sentences = []
    for i, attribute in enumerate(told):
        template = rng.choice(attribute.statements)
        text = upper_first(template.format(e=entity, v=value(rng, attribute.value)))
        if i and domain in PRONOUNS and template.startswith("{e} ") and rng.random() < 0.25:
            text = rng.choice(PRONOUNS[domain]) + text[len(entity) :]
        sentences.append(text)
    missing = tuple(a.questions for a in attributes if a not in told)
    return Passage(entity, tuple(sentences), tuple(a.questions for a in told), missing)


def biography(rng: Random, one: Instance) -> Passage:
    """A WordNet instance as sentences: what it is, where and when it was born and died, where WordNet says so."""
    sentences, questions = [f"{one.name} was {_with_article(one.gloss)}."], [_gloss_questions(rng, one)]
    if one.born_in:
        sentences.append(f"{rng.choice((one.name, 'He', 'She'))} was born in {one.born_in}.")
        questions.append(PLACE_QUESTIONS)
    if one.years:
        sentences.append(f"{rng.choice((one.name, one.name.split()[-1]))} lived from {one.years[0]} to {one.years[1]}.")
        questions.append(BIRTH_QUESTIONS + DEATH_QUESTIONS)
    missing = () if one.born_in else (PLACE_QUESTIONS,)
    return Passage(one.name, tuple(sentences), tuple(questions), missing)


def _with_article(gloss: str) -> str:
    if gloss.split()[0].lower() in ("a", "an", "the", "one") or not gloss[0].isalpha():
        return gloss
    return ("an " if gloss[0].lower() in "aeio" else "a ") + gloss


def _gloss_questions(rng: Random, one: Instance) -> tuple[str, ...]:
    """Questions about the gloss: the thing from its deed, or the thing's kind from its name."""
    found = ["What was {e}?", "Who or what is {e}?", "What is {e} known for?"]
    _, _, deed = one.gloss.partition(" who ")
    if len(deed.split()) > 2 and "{" not in deed:
        found += [f"Who {deed.split(';')[0]}?"] * 3
    _, _, deed = one.gloss.partition(" that ")
    if len(deed.split()) > 2 and "{" not in deed:
        found += [f"What {deed.split(';')[0]}?"] * 3
    return tuple(found)


def invented_context(rng: Random, instances: Sequence[Instance], questions: int, unanswerable: float = 0.2) -> Context:
    """One to four passages, half the time about like things, and questions on them."""
    domain, passages = rng.choice(list(DOMAINS)), list[Passage]()
    real = rng.random() < 0.35
    for _ in range(rng.choice((4, 5, 6)) if real else rng.choice((1, 2, 3, 3, 4, 4))):
        domain = rng.choice(list(DOMAINS)) if rng.random() < 0.3 else domain
        passages.append(biography(rng, rng.choice(instances)) if real else passage(rng, domain))
    answered = [(p.entity, q) for p in passages for q in p.questions]
    asked = []
    for _ in range(questions):
        if rng.random() < unanswerable:
            asked.append((ask(rng, *_unanswerable(rng, passages)), -1))
        else:
            index = rng.randrange(len(answered))
            asked.append((ask(rng, *answered[index]), index))
    return Context(tuple(p.sentences for p in passages), tuple(asked))


def _unanswerable(rng: Random, passages: Sequence[Passage]) -> tuple[str, tuple[str, ...]]:
    missing = [(p.entity, q) for p in passages for q in p.missing]
    if missing and rng.random() < 0.6:
        return rng.choice(missing)
    domain = rng.choice(list(DOMAINS))
    return ENTITIES[domain](rng), rng.choice(DOMAINS[domain]).questions


def ask(rng: Random, entity: str, templates: Sequence[str]) -> str:
    question = rng.choice(templates).format(e=entity)
    if rng.random() < 0.08:
        question = question.lower()
    if rng.random() < 0.05:
        question = question.rstrip("?")
    if rng.random() < 0.08:
        question = rng.choice(POLITE) + question[0].lower() + question[1:]
    return question
