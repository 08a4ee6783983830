"""Every score of a reconstruction against a case worked by hand, and against sacrebleu."""

import math

import numpy as np
import pytest
import sacrebleu

from nvib_jax.evaluation.reconstruction import (
    corpus_bleu,
    reconstruction_scores,
    word_edit_distance,
)

NAMES = ["exact", "bleu", "chrf", "token_accuracy", "word_error_rate", "empty"]


def approx(*values):
    """The scores of these values in the order of NAMES."""
    return dict(zip(NAMES, [pytest.approx(v, nan_ok=True) for v in values], strict=True))


def test_perfect():
    texts = ["the dog sleeps in the old house", "soldiers rest"]
    assert reconstruction_scores(texts, texts) == approx(1, 100, 100, 1, 0, 0)


def test_bleu_and_words_by_hand():
    texts = ["the dog sleeps in the old house", "a cat runs over many hills today"]
    scores = reconstruction_scores(texts, [texts[0], "a cat runs over many hills slowly"])
    # Precisions 13/14, 11/12, 9/10, 7/8, no brevity penalty.
    bleu = 100 * (13 / 14 * 11 / 12 * 9 / 10 * 7 / 8) ** 0.25
    assert scores == approx(0.5, bleu, scores["chrf"], 13 / 14, 1 / 14, 0)
    # The output is judged by the reference, not the other way round: brevity counts.
    cut = reconstruction_scores(texts, [" ".join(t.split()[:5]) for t in texts])
    assert cut == approx(0, 100 * math.exp(1 - 14 / 10), cut["chrf"], 10 / 14, 4 / 14, 0)


def test_chrf_by_hand():
    """Of "ab" in "abc": precisions 1, 1; recalls 2/3, 1/2, of 1- and 2-grams; no longer ones."""
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    want = 100 * 5 * precision * recall / (4 * precision + recall)
    assert reconstruction_scores(["abc"], ["ab"])["chrf"] == pytest.approx(want)
    precision, recall = recall, precision
    want = 100 * 5 * precision * recall / (4 * precision + recall)
    assert reconstruction_scores(["ab"], ["abc"])["chrf"] == pytest.approx(want)


def test_bleu_and_chrf_are_sacrebleus():
    rng = np.random.default_rng(0)
    words = np.array(["the", "dog", "sleeps", "Mr.", "it's", "3,000", "old", "."])
    texts, outputs = (
        [" ".join(rng.choice(words, n)) for n in rng.integers(1, 15, 40)] for _ in range(2)
    )
    scores = reconstruction_scores(texts, outputs)
    assert 1 < scores["bleu"] == sacrebleu.metrics.BLEU().corpus_score(outputs, [texts]).score
    assert 1 < scores["chrf"] == sacrebleu.metrics.CHRF().corpus_score(outputs, [texts]).score
    assert corpus_bleu(texts, outputs) == scores["bleu"]
    # The inputs may be any sequences.
    assert reconstruction_scores(tuple(texts), tuple(outputs)) == scores


@pytest.mark.parametrize(
    ("reference", "output", "accuracy", "errors"),
    [
        ("a b c d", "a b x d", 3 / 4, 1 / 4),  # replaced
        ("a b c d", "b c d", 0, 1 / 4),  # the first is lost: nothing is in its place
        ("a b c d", "a b c", 3 / 4, 1 / 4),
        ("a b c d", "a b c d e f", 4 / 6, 2 / 4),  # too long: punished by both
        ("a b", "x y z x y", 0, 5 / 2),
        ("a a b", "a b a", 1 / 3, 2 / 3),
        ("a b", " a  b ", 1, 0),  # words, not spaces
        ("a B", "a b", 1 / 2, 1 / 2),  # case counts
    ],
)
def test_words_by_hand(reference, output, accuracy, errors):
    scores = reconstruction_scores([reference], [output])
    assert scores["token_accuracy"] == pytest.approx(accuracy)
    assert scores["word_error_rate"] == pytest.approx(errors)
    assert scores["exact"] == (reference == output)


def test_words_are_counted_over_the_corpus():
    """Not a mean over sentences: 1 of 1 and 2 of 9 are 3 of 10."""
    scores = reconstruction_scores(["a", "a b c d e f g h i"], ["a", "a b"])
    assert scores["token_accuracy"] == pytest.approx(3 / 10)
    assert scores["word_error_rate"] == pytest.approx(7 / 10)


@pytest.mark.parametrize(
    ("references", "outputs", "want"),
    [
        (["a b"], [""], (0, 0, 0, 0, 1, 1)),
        (["a b"], [" "], (0, 0, 0, 0, 1, 1)),
        ([""], ["a b"], (0, 0, 0, 0, math.nan, 0)),
        ([""], [""], (1, 0, 0, math.nan, math.nan, 1)),
        (["", "a b c d"], ["", "a b c d"], (1, 100, 100, 1, 0, 1 / 2)),
        (["", "a b c d"], ["a b c d", ""], (0, 0, 0, 0, 8 / 4, 1 / 2)),
        (["a b c"], ["a b c"], (1, 0, 100, 1, 0, 0)),  # BLEU has no 4-gram to match
        (["a b c d"], ["a b c d"], (1, 100, 100, 1, 0, 0)),
    ],
)
def test_empty_and_short_sentences(references, outputs, want):
    scores = reconstruction_scores(references, outputs)
    assert scores == approx(*want)
    assert all(isinstance(value, float) for value in scores.values())


def test_very_long_sentences():
    """20,000 words of which every tenth is another and the last hundred are gone."""
    words = [f"w{i}" for i in range(20_000)]
    output = ["x" if i % 10 == 0 else w for i, w in enumerate(words)][:-100]
    scores = reconstruction_scores([" ".join(words)], [" ".join(output)])
    assert scores["token_accuracy"] == pytest.approx((19_900 - 1_990) / 20_000)
    assert scores["word_error_rate"] == pytest.approx((1_990 + 100) / 20_000)
    assert 60 < scores["bleu"] < 100


@pytest.mark.parametrize(("references", "outputs"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_outputs_as_references(references, outputs):
    match = f"{len(outputs)} outputs for {len(references)} references; wanted as many, at least 1"
    with pytest.raises(ValueError, match=match):
        reconstruction_scores(references, outputs)


def test_word_edit_distance_is_levenshteins():
    """Against the textbook's table, on random words; a distance of words, not of characters."""

    def table(a, b):
        row = list(range(len(b) + 1))
        for i, v in enumerate(a, 1):
            last, row[0] = row[0], i
            for j, w in enumerate(b, 1):
                last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (v != w))
        return row[-1]

    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (rng.choice(["a", "the", "dog", "ab"], rng.integers(0, 9)).tolist() for _ in "ab")
        assert word_edit_distance(" ".join(a), " ".join(b)) == table(a, b)
    assert word_edit_distance("dog", "cat") == 1
    assert word_edit_distance("", "") == 0
