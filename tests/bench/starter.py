"""Quote mode beside each of its parts alone: python -m tests.bench.starter.

XQuAD English, articles 24-47, which nothing was tuned on. The answering paragraph stands among three others, from
other articles (`other`) or from its own (`same`). Parts: BM25, MiniLM's cosine of sentence and question, MiniLM token
by token in context, and the pointer model through the real engine. Intervals are 95%, by bootstrap over questions.
What the pointer adds is tested in pairs: weights with and without it, fitted on articles 0-23 in this run.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from appliance.errors import PromptTooLong
from appliance.infer import llama
from appliance.infer.engine import Engine, Piece
from appliance.infer.onnx import TokenVectors
from appliance.knowledge.answer import quote
from appliance.knowledge.answer.sentence_scores import Candidates, lexical_scores, meaning_scores
from appliance.models import starter
from appliance.types import Finish, Floats, Generation, Origin, Sampling, Segment
from tests.bench import report, xquad
from tests.bench.fitting import fit_choice

ROOT = Path(__file__).parents[2]
CHUNK = 64  # questions handed to the engine at once
RESAMPLES = 2000
Flags = NDArray[np.bool_]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Embedded:
    """An item with its tokens' vectors, and each sentence's cosine with the question, embedded alone."""

    item: xquad.Item
    question_tokens: TokenVectors
    passages: tuple[Candidates, ...]
    cosine: Floats

    @property
    def texts(self) -> list[list[str]]:
        return [passage.sentence_texts() for passage in self.passages]


def embed(items: Sequence[xquad.Item]) -> list[Embedded]:
    """Embed each text once, whatever the number of items that it stands in."""
    contexts = sorted({text for item in items for text in (item.question, *(p.text for p in item.passages))})
    tokens = dict(zip(contexts, report.embedder().embed_tokens(contexts), strict=True))
    alone = sorted({s for item in items for s in (item.question, *_sentences(item))})
    vectors = dict(zip(alone, report.embedder().embed(alone), strict=True))
    return [
        Embedded(
            item,
            tokens[item.question],
            tuple(Candidates(p.text, p.sentences, tokens[p.text]) for p in item.passages),
            np.array([vectors[item.question] @ vectors[sentence] for sentence in _sentences(item)], np.float32),
        )
        for item in items
    ]


def _sentences(item: xquad.Item) -> list[str]:
    return [p.text[start:end] for p in item.passages for start, end in p.sentences]


@dataclass(frozen=True)
class Pointing:
    """What the pointer says of a question. logprobs: one a sentence; none_logprob: that no sentence answers."""

    logprobs: tuple[float, ...]
    none_logprob: float


class PointerEngine:
    """The starter in the appliance's own engine, on this thread."""

    def __init__(self) -> None:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
        llama.init()
        self._engine = Engine(
            llama.Model(str(starter.path())),
            cells=starter.CONTEXT_TOKENS,
            sequences=1,
            batch_tokens=2048,
            queue=CHUNK,
            threads=1,
            post=_deliver,
        )

    def point(self, items: Sequence[Embedded]) -> list[Pointing]:
        """What the pointer says of each item, labels constrained to the item's; nothing of what is too long for it."""
        found: dict[int, Pointing] = {}
        for start in range(0, len(items), CHUNK):
            for i in range(start, min(start + CHUNK, len(items))):
                try:
                    self._engine.submit(_generation(items[i]), _collector(found, i))
                except PromptTooLong:
                    found[i] = Pointing((0.0,) * len(items[i].cosine), 0.0)
            self._engine.run_until_idle()
        return [found[i] for i in range(len(items))]


def _deliver(pieces: list[tuple[Callable[[Piece], None], Piece]]) -> None:
    for deliver, piece in pieces:
        deliver(piece)


def _collector(found: dict[int, Pointing], index: int) -> Callable[[Piece], None]:
    def deliver(piece: Piece) -> None:
        if isinstance(piece, Finish):
            found[index] = Pointing(piece.label_logprobs[:-1], piece.label_logprobs[-1])

    return deliver


def _generation(one: Embedded) -> Generation:
    pieces = starter.pointer_prompt(one.texts, one.item.question)
    segments = tuple(Segment(Origin.SCAFFOLD if control else Origin.RETRIEVED, text) for text, control in pieces)
    return Generation(segments, Sampling(temperature=0.0, max_tokens=1), starter.labels(len(one.cosine)))


@dataclass(frozen=True)
class Judged:
    """One way to rank, over a setting's items: were its first sentences right, how sure was it of an answer."""

    right: Flags
    strict: Flags
    sureness: Values


def judge(items: Sequence[Embedded], scores: Sequence[Floats], sureness: Sequence[float]) -> Judged:
    """right and strict over the answerable items, sureness over all."""
    best = [(one.item, int(np.argmax(score))) for one, score in zip(items, scores, strict=True) if one.item.answerable]
    right, strict = [item.right[i] for item, i in best], [item.strict[i] for item, i in best]
    return Judged(np.array(right), np.array(strict), np.array(sureness, np.float64))


def judge_all(items: Sequence[Embedded], pointings: Sequence[Pointing]) -> dict[str, Judged]:
    bm25 = [lexical_scores(one.item.question, one.texts).bm25 for one in items]
    match = [meaning_scores(one.question_tokens, one.passages).match for one in items]
    cosine = [one.cosine for one in items]
    pointer = [np.array(p.logprobs, np.float32) for p in pointings]
    chosen = [quote.choose(one.item.question, one.question_tokens, one.passages) for one in items]
    return {
        "bm25": judge(items, bm25, [float(s.max()) for s in bm25]),
        "minilm": judge(items, cosine, [float(s.max()) for s in cosine]),
        "minilm_tokens": judge(items, match, [float(s.max()) for s in match]),
        "pointer": judge(items, pointer, [-p.none_logprob for p in pointings]),
        "quote": judge(items, [c.scores for c in chosen], [c.answerable for c in chosen]),
    }


def auc(sureness: Values, answerable: Flags) -> float:
    """The chance that an answerable item is held more sure than an unanswerable one; ties count half."""
    order = np.sort(sureness[~answerable])
    below = np.searchsorted(order, sureness[answerable], "left")
    up_to = np.searchsorted(order, sureness[answerable], "right")
    return float((below + up_to).mean() / 2 / len(order))


def interval(statistic: Callable[[NDArray[np.intp]], float], count: int) -> tuple[float, float]:
    """95% by bootstrap; statistic takes the drawn item numbers."""
    rng = np.random.default_rng(0)
    drawn = [statistic(rng.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def sign_test(without: Flags, with_it: Flags) -> tuple[int, int, float]:
    """Questions won and lost by the second, and the exact two-sided McNemar probability of such a difference."""
    won, lost = int((with_it & ~without).sum()), int((without & ~with_it).sum())
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    return won, lost, min(1.0, 2 * tail)


def evidence_of(one: Embedded) -> Floats:
    meaning = meaning_scores(one.question_tokens, one.passages)
    return quote.evidence(one.item.question, one.texts, lexical_scores(one.item.question, one.texts), meaning)


def with_pointer(evidence: Floats, pointing: Pointing) -> Floats:
    return np.column_stack([evidence, np.array(pointing.logprobs, np.float32)])


def pointer_gain(tuning: Sequence[tuple[Embedded, Pointing]], held_out: Sequence[tuple[Embedded, Pointing]]) -> str:
    """What the pointer's log-probability adds to quote mode's evidence: fitted on one part, paired on the other."""

    def hits(columns: Callable[[Embedded, Pointing], Floats]) -> Flags:
        weights = fit_choice([(columns(one, p), np.array(one.item.right)) for one, p in tuning])
        return np.array([one.item.right[int((columns(one, p) @ weights).argmax())] for one, p in held_out])

    without, with_it = hits(lambda one, _: evidence_of(one)), hits(lambda one, p: with_pointer(evidence_of(one), p))
    won, lost, chance = sign_test(without, with_it)
    return f"{without.mean():.3f} without, {with_it.mean():.3f} with: {won} won, {lost} lost, p = {chance:.2f}"


def row(name: str, judged: Judged, answerable: Flags) -> str:
    right = interval(lambda drawn: float(judged.right[drawn].mean()), len(judged.right))
    abstain = interval(lambda drawn: auc(judged.sureness[drawn], answerable[drawn]), len(answerable))
    return (
        f"{name:14s} {judged.right.mean():.3f} [{right[0]:.3f}, {right[1]:.3f}]   {judged.strict.mean():.3f}   "
        f"{auc(judged.sureness, answerable):.3f} [{abstain[0]:.3f}, {abstain[1]:.3f}]"
    )


def figures_of(setting: str, judged: Mapping[str, Judged], answerable: Flags) -> dict[str, float]:
    """Quote mode's figures under DESIGN's names, each part's under its own."""
    suffix = "_same_article" if setting == "same" else ""
    found = {}
    for name, part in judged.items():
        prefix = "" if name == "quote" else f"{name}_"
        found[f"{prefix}right_sentence{suffix}"] = float(part.right.mean())
        found[f"{prefix}abstain_auc{suffix}"] = auc(part.sureness, answerable)
    best = max(part.right.mean() for name, part in judged.items() if name != "quote")
    found[f"right_sentence{suffix}_vs_best_single"] = float(judged["quote"].right.mean() / best)
    found[f"right_sentence{suffix}_strict"] = float(judged["quote"].strict.mean())
    answers = judged["quote"].sureness >= quote.FUSED.answer_from
    found[f"answered{suffix}"] = float(answers[answerable].mean())
    found[f"refused{suffix}"] = float(1 - answers[~answerable].mean())
    return found


def measure(setting: xquad.Setting, data: Path, engine: PointerEngine) -> dict[str, float]:
    """Print a setting's table, and what the pointer adds there; returns its figures."""
    items = embed(xquad.load(data, xquad.HELD_OUT, setting))
    pointings = engine.point(items)
    answerable = np.array([one.item.answerable for one in items])
    judged = judge_all(items, pointings)
    print(f"\n{setting} article: {answerable.sum()} answerable, {(~answerable).sum()} not")
    print(f"{'':14s} right sentence          strict  abstain AUC")
    for name, part in judged.items():
        print(row(name, part, answerable))
    tuning = [one for one in embed(xquad.load(data, xquad.TUNING, setting)) if one.item.answerable]
    held_out = [(one, p) for one, p in zip(items, pointings, strict=True) if one.item.answerable]
    gain = pointer_gain(list(zip(tuning, engine.point(tuning), strict=True)), held_out)
    print(f"the pointer in the fusion: {gain}", flush=True)
    return figures_of(setting, judged, answerable)


def main() -> None:
    data, engine = report.data_folder(), PointerEngine()
    figures = measure("other", data, engine) | measure("same", data, engine)
    report.finish("starter", figures, ("numpy", "onnxruntime", "llama-cpp-python"), starter=starter.SHA256[:12])


if __name__ == "__main__":
    main()
