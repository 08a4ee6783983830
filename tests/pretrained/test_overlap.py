"""ROUGE by hand, and as the package that the field reports counts it."""

import numpy as np
import pytest
from pretrained_made import pairs

from nvib_jax.pretrained.overlap import SCORES, rouge


@pytest.mark.parametrize(
    ("said", "wanted", "kind", "share"),
    [
        # 3 words of 3 and 4 are shared: 2 3 / 7.
        ("the cat sat", "The cat sat down.", "1", 6 / 7),
        # 2 pairs of 2 and 3.
        ("the cat sat", "The cat sat down.", "2", 4 / 5),
        # A word counts as often as both have it: "the" once.
        ("the the the", "the cat", "1", 2 / 5),
        # In other order all words are there, one pair, and a subsequence of 2.
        ("sat the cat", "the cat sat", "1", 1.0),
        ("sat the cat", "the cat sat", "2", 1 / 2),
        ("sat the cat", "the cat sat", "L", 2 / 3),
        # What lies between does not end a subsequence.
        ("a x b y c", "a b c", "L", 6 / 8),
        ("", "the cat", "1", 0.0),
        ("cat", "dog", "L", 0.0),
    ],
)
def test_by_hand(said, wanted, kind, share):
    assert rouge([said], [wanted], kind=kind) == pytest.approx(100 * share)


def test_it_is_the_mean_over_texts():
    assert SCORES["rouge1"](["a b", "c"], ["a b", "d"]) == pytest.approx(50)


@pytest.mark.parametrize("kind", ["1", "2", "L"])
def test_as_rouge_score_counts_it(kind):
    scorer = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="rouge-score is not installed: it is the reference"
    )
    rng = np.random.default_rng(0)
    wanted = pairs(40, 1)[0]
    # Words are lost and exchanged, so that order and number differ.
    said = [
        " ".join(rng.permutation(words)[: rng.integers(1, len(words) + 1)])
        for words in (text.split() for text in wanted)
    ]
    theirs = scorer.RougeScorer([f"rouge{kind}"])
    shares = [
        theirs.score(b, a)[f"rouge{kind}"].fmeasure for a, b in zip(said, wanted, strict=True)
    ]
    assert rouge(said, wanted, kind=kind) == pytest.approx(100 * np.mean(shares))
    assert 5 < rouge(said, wanted, kind=kind) < 90
