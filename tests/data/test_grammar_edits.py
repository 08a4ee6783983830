"""Sentences in another tense, number or polarity: in the language, and back again the same."""

import pytest

from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.grammar_edits import ATTRIBUTES, attribute_of, edited
from nvib_jax.evaluation.probes import sentence_labels

SENTENCES = default_grammar().sentences(31, 400)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_there_and_back(name):
    """An edit is in the language, has the other value, keeps the others, and has an inverse."""
    found = [(text, new) for text in SENTENCES if (new := edited(text, name))]
    assert len(found) > 80
    for text, new in found:
        assert default_grammar().contains(new)
        assert {attribute_of(text, name), attribute_of(new, name)} == set(ATTRIBUTES[name])
        assert edited(new, name) == text
        others = set(ATTRIBUTES) - {name} - ({"polarity"} if name == "tense" else set())
        others -= {"tense"} if name == "polarity" else set()  # the negated have no tense
        assert all(attribute_of(text, o) == attribute_of(new, o) for o in others)


def test_the_values_are_the_probes_labels():
    """Two parses of one clause, written apart, agree; modal verbs have no tense here."""
    known = 0
    for text in SENTENCES:
        labels = sentence_labels(text)
        for name in ("tense", "number"):
            value = attribute_of(text, name)
            known += value is not None
            assert value in (None, labels[name])
    assert known > 300


@pytest.mark.parametrize(
    ("text", "name", "want"),
    [
        ("a dog that likes him is near an old house", "number",
         "some dogs that like him are near an old house"),
        ("this child often eats", "tense", "this child often ate"),
        ("there is an egg in the garden", "tense", "there was an egg in the garden"),
        ("there is an egg near the river", "number", "there are some eggs near the river"),
        ("the owl carries an apple", "polarity", "the owl does not carry an apple"),
        ("at noon the farmers were very sad", "tense", "at noon the farmers are very sad"),
        ("each dog sees a cat", "number", None),
        ("anna sees a cat", "number", None),
        ("many dogs see a cat", "number", None),
        ("the dog can see a cat", "tense", None),
        ("the dog saw a cat", "polarity", None),
        ("the dog sees a cat and they sleep", "tense", None),
        ("he thinks that the dog sleeps", "tense", None),
    ],
)  # fmt: skip
def test_edits(text, name, want):
    assert edited(text, name) == want


def test_wrong_arguments():
    with pytest.raises(ValueError, match="attribute is 'mood'; wanted one of 'tense', 'number'"):
        edited("the dog sees a cat", "mood")
    with pytest.raises(ValueError, match="'the dog sees cat' is not in the grammar's language"):
        attribute_of("the dog sees cat", "tense")
