"""Every figure of samples against a case worked by hand and the library it comes from."""

import functools
import math
import time

import numpy as np
import pytest
import sacrebleu
from rapidfuzz.distance import Levenshtein

from nvib_jax.data import default_grammar
from nvib_jax.evaluation.samples import distinct_n, memorised, sample_scores, self_bleu

TEXTS = ["the dog sees a cat", "the dog sees a bird", "", "a bird", "a bird"]


def bleu(text: str, references: list[str]) -> float:
    """Papineni et al. (2002) with sacrebleu's smoothing, in plain words."""
    words = text.split()
    if not words:
        return 0.0
    log_precisions, zeros = [], 0

    def grams(of: list[str], n: int) -> list[tuple[str, ...]]:
        return [tuple(of[i : i + n]) for i in range(len(of) - n + 1)]

    for n in range(1, 5):
        found = grams(words, n)
        if not found:
            break
        hits = sum(
            min(found.count(g), max(grams(r.split(), n).count(g) for r in references))
            for g in set(found)
        )
        if n == 1 and not hits:
            return 0.0
        zeros += not hits
        log_precisions.append(math.log(hits / len(found) if hits else 0.5**zeros / len(found)))
    closest = min((abs(len(r.split()) - len(words)), len(r.split())) for r in references)[1]
    brevity = min(0.0, 1 - closest / len(words))
    return 100 * math.exp(brevity + np.mean(log_precisions))


def test_self_bleu_by_hand():
    """Of two texts with 4 of 5 words in common: precisions 4/5, 3/4, 2/3, 1/2."""
    want = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(TEXTS[:2]) == pytest.approx(want, rel=1e-6)
    # Two words have no 3-grams: the order is 2, all of them are there.
    assert self_bleu(["a bird", "a bird"]) == pytest.approx(100)
    assert self_bleu(["a", "b"]) == 0
    # Punctuation is part of a word, as everything between spaces.
    assert self_bleu(["a dog.", "a dog ."]) == pytest.approx(
        (bleu("a dog.", ["a dog ."]) + bleu("a dog .", ["a dog."])) / 2, rel=1e-6
    )


def test_self_bleu_is_the_equation_and_sacrebleus():
    texts = [*default_grammar().sentences(3, 12), *TEXTS]
    others = [texts[:i] + texts[i + 1 :] for i in range(len(texts))]
    wanted = [bleu(text, rest) for text, rest in zip(texts, others, strict=True)]
    assert self_bleu(texts) == pytest.approx(np.mean(wanted), rel=1e-6)
    theirs = [
        sacrebleu.sentence_bleu(text, rest, tokenize="none", use_effective_order=True).score
        for text, rest in zip(texts, others, strict=True)
    ]
    assert self_bleu(texts) == pytest.approx(np.mean(theirs), rel=1e-12)


def test_self_bleu_of_a_subset_has_the_subset_as_references():
    texts = default_grammar().sentences(4, 60)
    drawn = np.random.default_rng(7).choice(60, 5, replace=False)
    assert self_bleu(texts, count=5, seed=7) == self_bleu([texts[i] for i in drawn])
    assert self_bleu(texts, count=5, seed=7) != self_bleu(texts, count=5, seed=8)
    assert self_bleu(texts, count=60, seed=1) == self_bleu(texts, count=1000, seed=2)


def test_distinct_n_by_hand():
    # the dog sees a cat the dog sees a bird a bird a bird: 6 of 14 words, 5 of 10 pairs.
    assert distinct_n(TEXTS, 1) == 6 / 14
    assert distinct_n(TEXTS, 2) == 5 / 10
    # A pair does not reach over the end of a sentence.
    assert distinct_n(["a b", "b a"], 2) == 1
    assert distinct_n(["a a a a"], 2) == 1 / 3


def test_memorised_by_hand():
    training = ["the dog sees a cat", "a dog runs", "birds"]
    scores = memorised(TEXTS, training)
    assert scores["memorised"] == 1 / 5
    # Same; one word of five differs; nothing in common; one of three words in common, twice.
    assert scores["nearest"] == pytest.approx((1 + 4 / 5 + 0 + 1 / 3 + 1 / 3) / 5, abs=1e-6)
    # Words, not letters, are edited; exactly means letter by letter.
    assert memorised(["the  dog"], ["the dog"]) == {"memorised": 0, "nearest": 1}
    assert memorised(["cats"], ["cat"]) == {"memorised": 0, "nearest": 0}


def test_nearest_is_rapidfuzz_over_all_pairs(monkeypatch):
    """In parts of the training data too, and over the subset that the seed draws."""
    texts, training = default_grammar().sentences(5, 30), default_grammar().sentences(6, 50)
    drawn = np.random.default_rng(2).choice(30, 8, replace=False)
    wanted = [
        max(Levenshtein.normalized_similarity(texts[i].split(), t.split()) for t in training)
        for i in drawn
    ]
    for at_once in (100_000, 50, 7):
        monkeypatch.setattr("nvib_jax.evaluation.samples._COMPARED_AT_ONCE", at_once)
        found = memorised(texts, training, count=8, seed=2)["nearest"]
        assert found == pytest.approx(np.mean(wanted), abs=1e-6)


def test_nearest_of_sixty_thousand_takes_seconds():
    """Two CPU seconds or so; a loop over pairs in Python would take many minutes."""
    training = default_grammar().sentences(0, 60_000)
    start = time.process_time()
    memorised(default_grammar().sentences(1, 300), training)
    assert time.process_time() - start < 100


@pytest.mark.parametrize("text", ["", "word", "the dog sees a cat"])
@pytest.mark.parametrize("count", [1, 3])
def test_one_text_and_one_text_again_and_again(text, count):
    """What has no value is nan; nothing fails."""
    scores = sample_scores([text] * count, training=["the dog sees a cat", "x"])
    words = len(text.split())
    assert scores["empty"] == (words == 0)
    assert scores["words"] == words
    assert scores["memorised"] == (words == 5)
    assert scores["nearest"] == pytest.approx(float(words == 5))
    assert scores["distinct_1"] == pytest.approx(1 / count if words else math.nan, nan_ok=True)
    assert scores["distinct_2"] == pytest.approx(1 / count if words == 5 else math.nan, nan_ok=True)
    alike = math.nan if count == 1 else 100 if words else 0
    assert scores["self_bleu"] == pytest.approx(alike, nan_ok=True)


def test_sample_scores_are_those_of_the_functions(monkeypatch):
    small = {"self_bleu": functools.partial(self_bleu, count=5)}
    small["memorised"] = functools.partial(memorised, count=5)
    for name, function in small.items():
        monkeypatch.setattr(f"nvib_jax.evaluation.samples.{name}", function)

    class Model:
        def perplexity(self, texts):
            return 10.0 + len(texts)

    training = default_grammar().sentences(1, 20)
    texts = [*default_grammar().sentences(2, 30), training[0], ""]
    scores = sample_scores(texts, training=training, seed=3)
    assert scores == {
        "empty": 1 / 32,
        "words": pytest.approx(sum(len(t.split()) for t in texts) / 32),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "self_bleu": small["self_bleu"](texts, seed=3),
        **small["memorised"](texts, training, seed=3),
    }
    more = sample_scores(texts, training=training, seed=3, language_model=Model())
    assert more == scores | {"forward_perplexity": 42.0}


@pytest.mark.parametrize(
    "call",
    [
        self_bleu,
        functools.partial(distinct_n, n=1),
        functools.partial(memorised, training=["a"]),
        functools.partial(sample_scores, training=["a"]),
    ],
)
@pytest.mark.parametrize("texts", [[], "a string"])
def test_no_texts_is_an_error(call, texts):
    with pytest.raises(ValueError, match=r"texts is .*wanted a list of at least one text"):
        call(texts)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: memorised(["a"], []), r"training is \[\]; wanted a list of at least one"),
        (lambda: memorised(["a"], ["a"], count=0), "count is 0; wanted at least 1"),
        (lambda: self_bleu(["a"], count=1), "count is 1; wanted at least 2"),
        (lambda: distinct_n(["a"], 0), "n is 0; wanted at least 1"),
    ],
)
def test_what_cannot_be_is_an_error(call, match):
    with pytest.raises(ValueError, match=match):
        call()
