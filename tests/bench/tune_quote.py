"""Fit the constants of appliance/knowledge/answer/quote.py on XQuAD, articles 0-23, and print them.

python -m tests.bench.tune_quote: FUSED on the English, LEXICAL on the Russian questions; the sentence weights by a
conditional logit (the right sentences against all candidates), then the abstention by a logistic regression on
answerable and unanswerable items. Nothing here reads the held-out articles.
"""

from collections.abc import Sequence

import numpy as np

from appliance.knowledge.answer import quote
from appliance.knowledge.answer.sentence_scores import lexical_scores, meaning_scores
from appliance.types import Floats
from tests.bench import xquad
from tests.bench.fitting import Matrix, fit_answer, fit_choice
from tests.bench.report import data_folder
from tests.bench.starter import Embedded, embed

FOLDS = 8
SETTINGS: tuple[xquad.Setting, ...] = ("other", "same")
Columns = list[int]


def columns_of(one: Embedded) -> Floats:
    lexical = lexical_scores(one.item.question, one.texts)
    meaning = meaning_scores(one.question_tokens, one.passages)
    return quote.evidence(one.item.question, one.texts, lexical, meaning)


def known_of(one: Embedded, weights: Matrix) -> Floats:
    lexical = lexical_scores(one.item.question, one.texts)
    meaning = meaning_scores(one.question_tokens, one.passages)
    scores = quote.evidence(one.item.question, one.texts, lexical, meaning) @ weights
    odds = np.exp(scores - scores.max())
    return quote.answer_evidence(one.texts, lexical, meaning, (odds / odds.sum()).astype(np.float32))


def cross_validated(items: Sequence[Embedded], used: Columns) -> float:
    """Share of right sentences where each article's weights come from the other articles."""
    prepared = [(one.item.article, columns_of(one)[:, used], np.array(one.item.right)) for one in items]
    hits = []
    for fold in range(FOLDS):
        weights = fit_choice([(c, r) for article, c, r in prepared if article % FOLDS != fold])
        hits += [bool(r[(c @ weights).argmax()]) for article, c, r in prepared if article % FOLDS == fold]
    return float(np.mean(hits))


def tune(name: str, language: str, used: Columns, known_used: Columns) -> None:
    """Print a Fusion fitted on those columns, the others' weights zero."""
    data = data_folder()
    items = [one for s in SETTINGS for one in embed(xquad.load(data, xquad.TUNING, s, language))]
    answerable = [one for one in items if one.item.answerable]
    weights = np.zeros(5)
    weights[used] = fit_choice([(columns_of(one)[:, used], np.array(one.item.right)) for one in answerable])
    known = np.stack([known_of(one, weights) for one in items])
    flags = np.array([one.item.answerable for one in items])
    answer = np.zeros(3)
    answer[known_used], constant = fit_answer(known[:, known_used], flags)
    print(f"{name} = Fusion({rounded(weights)}, {rounded(answer)}, {constant:.4g})")
    print(f"  right sentence, cross-validated by article: {cross_validated(answerable, used):.3f}")
    probability = 1 / (1 + np.exp(-(known @ answer + constant)))
    for least in (0.1, 0.2, 0.3, 0.4, 0.5):
        answered, refused = np.mean(probability[flags] >= least), np.mean(probability[~flags] < least)
        print(f"  from {least}: answers {answered:.3f} of the answerable, refuses {refused:.3f} of the rest")


def rounded(values: Matrix) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in values)


def main() -> None:
    tune("FUSED", "en", [0, 1, 2, 3, 4], [0, 1, 2])
    tune("LEXICAL", "ru", [0, 1], [1, 2])


if __name__ == "__main__":
    main()
