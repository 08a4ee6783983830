"""The grammar as a distribution: draws, membership, exact probabilities."""

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from nvib_jax.data.grammar import MAX_WORDS, MIN_WORDS, Grammar, default_grammar

# Recursive, with `a`/`an`, an empty expansion and words enough to matter, yet small enough that
# every string over its words can be tried.
SMALL = """
sentence:
  3 noun_phrase_s VERB_s adverb
  2 noun_phrase_p VERB_p adverb
noun_phrase_{n}:
  5 ARTICLE_{n} NOUN_{n}
  2 ARTICLE_{n} NOUN_{n} THAT VERB_{n}
  1 ARTICLE_{n} NOUN_{n} NEAR noun_phrase_s
adverb:
  3
  1 OFTEN adverb
ARTICLE_s = a
ARTICLE_p = two
NOUN_s NOUN_p = owl/owls cat/cats
VERB_s VERB_p = eats/eat
THAT = that
NEAR = near
OFTEN = often
"""


@pytest.fixture(scope="module")
def english():
    return default_grammar()


@pytest.fixture(scope="module")
def corpus(english):
    return english.sentences(7, 100_000)


@pytest.fixture(scope="module")
def small():
    return Grammar(SMALL)


# ---- draws


def test_the_seed_names_the_corpus(english):
    assert english.sentences(3, 50) == english.sentences(3, 50)
    assert english.sentences(3, 50) == english.sentences(3, 80)[:50]
    assert english.sentences(3, 50) != english.sentences(4, 50)
    assert english.sentences((3, 0), 50) != english.sentences((3, 1), 50)


def test_sample_follows_the_generator_it_is_given(english):
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(3)))
    assert [english.sample(rng) for _ in range(20)] == english.sentences(3, 20)


def test_form_of_sentences(corpus, english):
    lengths = np.array([len(sentence.split(" ")) for sentence in corpus])
    assert lengths.min() == MIN_WORDS == 4
    assert lengths.max() == MAX_WORDS == 24
    assert set(itertools.chain(*(sentence.split(" ") for sentence in corpus))) == english.words
    assert len(english.words) > 400
    # Nearly all different, so that held-out sentences are new.
    assert len(set(corpus)) > 0.98 * len(corpus)


def test_lengths_are_drawn_as_computed(corpus, english):
    counts = np.bincount([len(s.split()) for s in corpus], minlength=MAX_WORDS + 1)
    expected = english.length_probabilities * len(corpus)
    assert expected[:MIN_WORDS].sum() == 0
    # False alarm: 1e-4, on a fixed seed.
    assert stats.chisquare(counts[MIN_WORDS:], expected[MIN_WORDS:]).pvalue > 1e-4
    assert stats.chisquare(counts[MIN_WORDS:], np.roll(expected[MIN_WORDS:], 1)).pvalue < 1e-12


def test_sentences_come_as_often_as_log_prob_says(small):
    drawn = 100_000
    counts = Counter(small.sentences(8, drawn))
    expected = {s: drawn * math.exp(small.log_prob(s)) for s in counts}
    common = [s for s in counts if expected[s] > 10]
    assert len(common) > 100
    observed = [counts[s] for s in common]
    predicted = [expected[s] for s in common]
    rest = drawn - sum(observed), drawn - sum(predicted)
    # False alarm: 1e-4, on a fixed seed.
    assert stats.chisquare([*observed, rest[0]], [*predicted, rest[1]]).pvalue > 1e-4
    # The limit on length throws half of the draws away: without Z all counts would be half.
    assert math.exp(small._log_normaliser) == pytest.approx(0.5, abs=0.1)


def test_english_word_frequencies_are_as_listed(english, corpus):
    """Within a class, and over sentences of all lengths, words keep their shares."""
    names = english.classes["NAME"]
    counts = Counter(word for s in corpus for word in s.split() if word in names)
    total = sum(counts.values())
    expected = [share * total for share in names.values()]
    assert stats.chisquare([counts[name] for name in names], expected).pvalue > 1e-4


# ---- membership


def test_every_draw_is_in_the_language(corpus, english):
    assert all(english.contains(sentence) for sentence in corpus[:5000])


@pytest.mark.parametrize(
    "sentence",
    [
        "she sleeps in the garden",
        "the dogs near the old house chase a cat that sleeps",
        "the teacher who the boys like",  # no verb
        "an old man sees an apple",
        "the man knows that the children sleep",
        "the boy that my sister sees runs",  # unknown word
    ],
)
def test_hand_written_sentences(sentence, english):
    outside = {"the teacher who the boys like", "the boy that my sister sees runs"}
    assert english.contains(sentence) == (sentence not in outside)


@pytest.mark.parametrize(
    "wrong",
    [
        "the dogs near the old house chases a cat",  # agreement across a phrase
        "the man who sleep runs home quickly",
        "a apple is in the box",
        "an man sees the dog",
        "The man sees the dog",
        "the man  sees the dog",
        " the man sees the dog",
        "the man sees the dog .",
        "she sleeps quietly",  # three words
        "",
        "the the the the",
        "the man sees the dog" + " and the man sees the dog" * 4,
    ],
)
def test_what_is_not_in_the_language(wrong, english):
    assert not english.contains(wrong)
    assert english.log_prob(wrong) == -math.inf


def _with_verb_number_swapped(english, sentence):
    """The sentence with its first singular verb in the plural, if it has one."""
    plural = {
        s: p
        for name in english.classes
        if name.endswith("_s") and name.startswith(("V", "DO"))
        for s, p in zip(english.classes[name], english.classes[name[:-1] + "p"], strict=True)
    }
    words = sentence.split()
    for i, word in enumerate(words):
        if word in plural:
            return " ".join([*words[:i], plural[word], *words[i + 1 :]])
    return None


def test_corrupted_sentences_are_out(corpus, english):
    swapped = [_with_verb_number_swapped(english, s) for s in corpus[:4000]]
    swapped = [s for s in swapped if s]
    assert len(swapped) > 1000
    assert not any(english.contains(s) for s in swapped)

    rng = random.Random(0)
    shuffled = [" ".join(rng.sample(s.split(), len(s.split()))) for s in corpus[:2000]]
    assert sum(map(english.contains, shuffled)) < 0.03 * len(shuffled)

    headless = [s.removeprefix("the ") for s in corpus[:4000] if s.startswith("the ")]
    singular = {f"{w}" for c in ("PERSON_s", "ANIMAL_s") for w in english.classes[c]}
    headless = [s for s in headless if s.split()[0] in singular]
    assert len(headless) > 300
    assert not any(english.contains(s) for s in headless)


# ---- probabilities


def test_the_grammar_is_unambiguous(english, corpus):
    """Strict LALR(1) proves it; lark's Earley parser, asked for all derivations, agrees."""
    from lark import Tree

    earley = english.lark(parser="earley", ambiguity="explicit")
    for sentence in corpus[:300]:
        tree = earley.parse(english.tokens(sentence))
        assert isinstance(tree, Tree)
        assert not list(tree.find_data("_ambig"))


def test_ambiguity_would_be_found(small):
    from lark.exceptions import GrammarError

    # The relative clause may now belong to either noun.
    text = SMALL.replace("NEAR noun_phrase_s", "NEAR noun_phrase_s THAT VERB_s")
    text = text.replace("  1 OFTEN adverb", "  1 OFTEN adverb\n  1 adverb OFTEN")
    with pytest.raises(GrammarError, match="conflict"):
        Grammar(text).log_prob("a cat eats often")


def test_small_language_by_brute_force(small):
    """Every string of 4 or 5 words over all words: probabilities add up to those of lengths."""
    for length in (4, 5):
        strings = map(" ".join, itertools.product(sorted(small.words), repeat=length))
        inside = [s for s in strings if small.contains(s)]
        total = sum(math.exp(small.log_prob(s)) for s in inside)
        assert total == pytest.approx(small.length_probabilities[length], rel=1e-12)
        assert total > 0.1
    assert small.length_probabilities.sum() == pytest.approx(1.0, rel=1e-12)
    drawn = set(small.sentences(0, 20_000))
    assert {s for s in drawn if len(s.split()) == 5} == set(inside)


def _class_sequences(grammar, length):
    """All sequences of `length` word classes with their probabilities, by expanding the rules."""
    found = Counter()
    stack = [(("sentence",), 1.0)]
    while stack:
        symbols, probability = stack.pop()
        rule_at = next((i for i, s in enumerate(symbols) if s in grammar.rules), None)
        if rule_at is None:
            if len(symbols) == length:
                found[symbols] += probability
            continue
        for share, expansion in grammar.rules[symbols[rule_at]]:
            expanded = symbols[:rule_at] + expansion + symbols[rule_at + 1 :]
            # Only a tail can vanish, and no sentence has more than one of them per verb.
            if sum(not s.endswith("_tail") for s in expanded) <= length:
                stack.append((expanded, probability * share))
    return found


@pytest.mark.parametrize("length", [4, 5])
def test_probabilities_of_short_english_sentences_sum_to_that_of_their_length(english, length):
    """With one sentence for each sequence of classes, whose words' shares are divided out."""
    sequences = _class_sequences(english, length)
    assert len(sequences) > 500
    total = 0.0
    for classes, expanded in sequences.items():
        words = [next(iter(english.classes[name])) for name in classes]
        shares = [english.classes[name][word] for name, word in zip(classes, words, strict=True)]
        written = " ".join(_with_articles(words))
        log_prob = english.log_prob(written) - sum(map(math.log, shares))
        assert log_prob == pytest.approx(math.log(expanded) - english._log_normaliser, abs=1e-9)
        total += math.exp(log_prob)
    assert total == pytest.approx(english.length_probabilities[length], rel=1e-9)


def _with_articles(words):
    pairs = itertools.pairwise([*words, ""])
    return ["an" if word == "a" and after[:1] in set("aeiou") else word for word, after in pairs]


def test_log_probabilities_are_finite_and_moderate(corpus, english):
    scores = np.array([english.log_prob(sentence) for sentence in corpus[:5000]])
    assert np.isfinite(scores).all()
    # Entropy in nats per sentence; the README and the evaluation quote it.
    assert -scores.mean() == pytest.approx(30.8, abs=0.8)


# ---- the format


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence:\n  1 NOUN\nNOUN = dog\nVERB = runs", r"does not use: \['VERB'\]"),
        ("sentence:\n  1 NOUN VERB\nNOUN = dog", r"does not define: \['VERB'\]"),
        ("sentence:\n  1 NOUN VERB\nNOUN = dog\nVERB = dog", "'dog' is in two classes: NOUN"),
        ("sentence:\n  many NOUN\nNOUN = dog", "line 2 is neither a rule nor words: '  many"),
    ],
)
def test_faulty_grammars_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Grammar(text)
