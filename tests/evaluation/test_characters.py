"""Noise in characters, segments beside words, and linear probes, each by hand."""

import itertools

import numpy as np
import pytest

from nvib_jax.data import default_grammar
from nvib_jax.evaluation.character_noise import KINDS, corrupt, noise_scores
from nvib_jax.evaluation.probes import linear_probe, sentence_labels
from nvib_jax.evaluation.segments import (
    at_random,
    boundary_match,
    every,
    runs,
    word_match,
    word_spans,
)

# ---- noise


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_no_share_changes_nothing_and_of_all_everything(kind):
    rng = np.random.default_rng(0)
    assert corrupt("the dog", kind, 0.0, rng, "xyz") == "the dog"
    found = corrupt("abcdef", kind, 1.0, rng, "xyz")
    assert {
        "delete": found == "a",
        "insert": found[1::2] == "abcdef" and set(found[::2]) <= set("xyz") and len(found) == 12,
        "substitute": len(found) == 6 and set(found) <= set("xyz"),
        "swap": found == "badcfe",
    }[kind]


@pytest.mark.parametrize(("kind", "change"), [("delete", -1), ("insert", 1)])
def test_the_share_is_that_of_the_characters(kind, change):
    """Of 20,000 characters a fifth, within 4 standard errors: false alarm 6e-5."""
    found = corrupt("a" * 20_000, kind, 0.2, np.random.default_rng(1), "b")
    share = change * (len(found) - 20_000) / 20_000
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 20_000)


def test_a_swapped_character_moves_once():
    assert sorted(corrupt("abcdefgh", "swap", 0.5, np.random.default_rng(2), "x")) == list(
        "abcdefgh"
    )
    with pytest.raises(ValueError, match="kind is 'shuffle'; wanted one of delete, insert"):
        corrupt("abc", "shuffle", 0.5, np.random.default_rng(0), "x")


def test_scores_are_means_over_kinds():
    table = [
        {"kind": "swap", "share": 0.2, "chrf": 40.0, "nats": 2.0},
        {"kind": "delete", "share": 0.2, "chrf": 60.0, "nats": 1.0},
        {"kind": "swap", "share": 0.0, "chrf": 90.0, "nats": 0.1},
    ]
    assert noise_scores(table) == {
        "noise_chrf_20": 50.0,
        "noise_nats_20": 1.5,
        "noise_chrf_0": 90.0,
        "noise_nats_0": 0.1,
    }


# ---- segments

TEXT = "the dog sees"


def test_segments_of_owners():
    assert runs(np.array([3, 3, 0, 3])) == [(0, 2), (2, 3), (3, 4)]
    assert every(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert word_spans(TEXT) == [(0, 3), (4, 7), (8, 12)]
    assert [TEXT[a:b] for a, b in word_spans(TEXT)] == TEXT.split()


@pytest.mark.parametrize(
    ("cuts", "both", "found"),
    [
        ([3, 7], 2, 2),  # before each space
        ([4, 8], 2, 2),  # after it
        ([3, 4, 7, 8], 2, 2),  # on both sides, which is one boundary
        ([1, 4, 6], 1, 3),  # one at a space, two inside words
        ([], 0, 0),
    ],
)
def test_boundaries_are_at_spaces_or_inside_words(cuts, both, found):
    ends = [0, *cuts, len(TEXT)]
    segments = list(itertools.pairwise(ends))
    assert boundary_match(TEXT, segments) == (both, found, 2)


def test_words_are_paired_with_segments_one_to_one():
    assert word_match(TEXT, word_spans(TEXT)) == (3.0, 3, 3)
    # One segment for all: Dice with "sees" is the best, 2 * 4 / (10 + 4).
    assert word_match(TEXT, [(0, 12)]) == (pytest.approx(8 / 14), 1, 3)
    # "th|e dog |se|es": th-the, "e dog"-dog and one half of sees.
    like, found, words = word_match(TEXT, [(0, 2), (2, 8), (8, 10), (10, 12)])
    assert (found, words) == (4, 3)
    assert like == pytest.approx(2 * 2 / 5 + 2 * 3 / 7 + 2 * 2 / 6)
    assert word_match("a b", [(0, 1), (1, 2), (2, 3)])[1] == 2  # a segment of spaces is none


def test_random_segments_cover_the_text():
    rng = np.random.default_rng(0)
    for count in (1, 2, 12):
        found = at_random(12, count, rng)
        assert len(found) == count
        assert [a for a, _ in found][1:] == [b for _, b in found][:-1]
        assert (found[0][0], found[-1][1]) == (0, 12)
        assert all(a < b for a, b in found)


# ---- probes


def test_labels_are_the_parse_s():
    wanted = {
        "there were two men in the house": ("plural", "person", "past", "no"),
        "the dog that the man sees runs": ("singular", "animal", "present", "yes"),
        "the dog that sleeps saw a cat": ("singular", "animal", "past", "yes"),
        "they will see the books": ("plural", "pronoun", "modal", "no"),
        "the old book fell": ("singular", "thing", "past", "no"),
        "at noon anna does not sing": ("singular", "name", "present", "no"),
    }
    for text, labels in wanted.items():
        found = sentence_labels(text)
        got = tuple(found[name] for name in ("number", "subject", "tense", "relative"))
        assert got == labels, text
    for wrong in ("dog the", "the dog that runs saw a cat"):
        with pytest.raises(ValueError, match=f"{wrong!r} is not in the grammar's language"):
            sentence_labels(wrong)


def test_every_sentence_has_labels():
    names = [tuple(sentence_labels(text)) for text in default_grammar().sentences(11, 200)]
    assert set(names) == {("number", "subject", "tense", "relative", "depth", "length")}


def test_a_probe_finds_what_is_linear_and_nothing_else():
    """On 2,000 examples: a sign of one column; and of a product of two, which is chance.

    The second is within 4 standard errors of a half: false alarm 6e-5.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 8)) * 5 + 3
    centred = (x - 3) / 5
    for y, least, most in (
        (centred[:, 2] > 0, 0.97, 1.0),
        (centred[:, 0] * centred[:, 1] > 0, 0.5 - 4 * 0.5 / 2000**0.5, 0.5 + 4 * 0.5 / 2000**0.5),
    ):
        y = y.astype(int)
        guess = linear_probe(x[:2000], y[:2000], x[2000:], 2)
        assert least <= np.mean(guess == y[2000:]) <= most
