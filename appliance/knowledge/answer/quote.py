"""Quote mode: which sentence of the found passages answers a question, and whether any does. Pure.

A sentence's score is a weighted sum of five scores (`evidence`); over all candidates it is a conditional logit, so
that exp(score) over its sum is the sentence's share. Whether the question is answered at all is a logistic regression
on three figures of the winner (`answer_evidence`). Both were fitted on XQuAD, articles 0-23, by
`tests/bench/tune_quote.py`, which prints the constants below; articles 24-47 were kept for `tests/bench/starter.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from appliance.knowledge.answer.sentence_scores import (
    WORD,
    Candidates,
    LexicalScores,
    MeaningScores,
    Tokens,
    cue,
    lexical_scores,
    meaning_scores,
    passage_numbers,
)
from appliance.types import Floats


@dataclass(frozen=True, slots=True)
class Fusion:
    """evidence: weights of bm25, bm25 of the sentence before, match, best match in the passage, cue.

    answer: weights of match and coverage of the winner's passage, and of the winner's share; then the constant, and the
    probability from which the question is answered.
    """

    evidence: tuple[float, float, float, float, float]
    answer: tuple[float, float, float]
    constant: float
    answer_from: float


# On the tuning articles: answers 99% of what has an answer, refuses 84% of what has none. 0.2 would refuse 89% there,
# but people share fewer words with their documents than XQuAD's questions with theirs, and a quote is never invented.
FUSED = Fusion((0.1731, 0.06047, 17.51, 18.81, 1.164), (17.49, 5.24, 4.304), -13.54, answer_from=0.1)
# for what the embedder can't read: words alone, fitted on the Russian questions; answers 85%, refuses 81%
LEXICAL = Fusion((0.7653, 0.1914, 0.0, 0.0, 0.0), (0.0, 10.35, 2.358), -3.181, answer_from=0.35)
# MiniLM spells a word that its vocabulary lacks in pieces: 1.1 tokens a word in English, 2.3 in German, 6 in Russian
READABLE_TOKENS_A_WORD = 3.0


@dataclass(frozen=True, slots=True)
class Choice:
    """order: sentences best first, numbered over all passages in turn. scores, shares: float32 [sentences], by number.

    answerable: the probability that the best sentence, or any, answers; abstain: it is too small to answer.
    """

    order: tuple[int, ...]
    scores: Floats
    shares: Floats
    answerable: float
    abstain: bool


def choose(question: str, question_tokens: Tokens, passages: Sequence[Candidates]) -> Choice:
    """Rank all sentences of the passages, and decide whether to answer. Without any sentence it abstains."""
    texts = [passage.sentence_texts() for passage in passages]
    if not any(texts):
        return Choice((), np.zeros(0, np.float32), np.zeros(0, np.float32), 0.0, abstain=True)
    lexical = lexical_scores(question, texts)
    meaning = meaning_scores(question_tokens, passages)
    fusion = fusion_for(question, question_tokens)
    scores = (evidence(question, texts, lexical, meaning) * np.array(fusion.evidence, np.float32)).sum(1)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    known = answer_evidence(texts, lexical, meaning, shares)
    log_odds = float(known @ np.array(fusion.answer, np.float32)) + fusion.constant
    answerable = 1.0 / (1.0 + math.exp(-log_odds))
    order = tuple(int(i) for i in np.argsort(-scores, kind="stable"))
    return Choice(order, scores, shares, answerable, answerable < fusion.answer_from)


def fusion_for(question: str, tokens: Tokens) -> Fusion:
    """FUSED for a question that the embedder can read, LEXICAL for one that it only spells."""
    words = len(WORD.findall(question))
    return FUSED if len(tokens.ids) <= READABLE_TOKENS_A_WORD * max(words, 1) else LEXICAL


def evidence(
    question: str, passages: Sequence[Sequence[str]], lexical: LexicalScores, meaning: MeaningScores
) -> Floats:
    """float32 [sentences, 5], in the order of Fusion.evidence."""
    passage_of = passage_numbers([len(sentences) for sentences in passages])
    before = np.concatenate(([0.0], lexical.bm25[:-1] * (passage_of[1:] == passage_of[:-1])))
    best = np.array([meaning.match[passage_of == p].max() for p in passage_of])
    cues = [cue(question, sentence) for sentence in chain.from_iterable(passages)]
    return np.stack([lexical.bm25, before, meaning.match, best, cues], 1).astype(np.float32)


def answer_evidence(
    passages: Sequence[Sequence[str]], lexical: LexicalScores, meaning: MeaningScores, shares: Floats
) -> Floats:
    """float32 [3], in the order of Fusion.answer."""
    winner = int(shares.argmax())
    home = passage_numbers([len(sentences) for sentences in passages])[winner]
    known = (meaning.match_of_passage[home], lexical.coverage_of_passage[home], shares[winner])
    return np.array(known, np.float32)
