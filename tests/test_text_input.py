"""What is typed is read as the training text was, and what a person should know of it is said."""

import dataclasses
import warnings

import numpy as np
import pytest
import tiny

from nvib_jax.data import DataConfig
from nvib_jax.data.clean import Cleaner, clean_text
from nvib_jax.data.config import CleanConfig
from nvib_jax.data.grammar import MAX_WORDS, MIN_WORDS
from nvib_jax.text.as_typed import UnusualText, length_note, training_lengths
from nvib_jax.text_model import TextModel

USUAL = "the dog sees a cat"
WIKITEXT = CleanConfig(keep_characters="a-zA-Z0-9 ,'<>.", min_tokens=4)


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


@pytest.fixture(scope="module")
def wikitext(model):
    """The same parameters under the cleaning of the papers."""
    data = DataConfig(source="text", train=("none",), clean=WIKITEXT)
    return model.described(config=dataclasses.replace(model.config, data=data))


# ---- cleaning


def test_a_sentence_is_cleaned_as_a_document_is():
    for text in ("My name is Clara !", "The red @-@ tipped “ owl ”", "a  b ,c", "Zoë's"):
        for config in (WIKITEXT, CleanConfig(keep_characters=""), CleanConfig(lowercase=False)):
            assert [clean_text(text, config)] == Cleaner(config, "lines").sentences([text])[0]


def test_the_cleaning_of_the_training_text_is_applied_to_what_is_typed(wikitext):
    with pytest.warns(UnusualText, match="'The dog sees a cat !' is read as 'the dog sees a cat'"):
        typed = wikitext.encode(["The dog sees a cat !"])
    read = wikitext.encode([USUAL], clean=False)
    np.testing.assert_array_equal(typed.mean, read.mean)
    wild = wikitext.encode(["The dog sees a cat !"], clean=False)
    assert np.abs(wild.mean - read.mean).max() > 1e-3  # power: else nothing above could fail


def test_capitals_and_punctuation_go_where_the_language_has_none(model):
    with pytest.warns(UnusualText) as told:
        typed = model.encode(["The dog sees, a cat."])
    assert [str(w.message) for w in told] == [
        "'The dog sees, a cat.' is read as 'the dog sees a cat', cleaned as the training text was"
    ]
    np.testing.assert_array_equal(typed.mean, model.encode([USUAL]).mean)


@pytest.mark.parametrize("method", ["reconstruct", "embed", "score"])
def test_every_method_reads_alike(model, method):
    run = getattr(model, method)
    with pytest.warns(UnusualText, match="is read as") as told:
        typed = run([USUAL.upper()])
    assert told[0].filename == __file__  # the caller's line, not the library's
    np.testing.assert_array_equal(typed, run([USUAL]))
    np.testing.assert_array_equal(run([USUAL], clean=False), run([USUAL]))


def test_examples_of_an_edit_are_read_alike(model):
    with pytest.warns(UnusualText, match="is read as") as edited:
        model.edit([USUAL], towards=[USUAL.upper()], away=[USUAL])
    with pytest.warns(UnusualText, match="is read as") as compared:
        model.similarity([USUAL], [USUAL.upper()])
    assert [w.filename for w in (*edited, *compared)] == [__file__] * 2


def test_interpolation_reads_alike(model):
    with pytest.warns(UnusualText, match="1 of 2 texts: 'A dog sees a cat' is read as"):
        path = model.interpolate("A dog sees a cat", USUAL, steps=2)
    assert path == model.interpolate("a dog sees a cat", USUAL, steps=2)


def test_a_text_of_which_nothing_is_left_is_named(model):
    with pytest.raises(ValueError, match=r"of the text '\?!' nothing is left once it is cleaned"):
        model.reconstruct(["?!"])


def test_sentences_of_the_data_are_taken_as_they_stand(wikitext):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wikitext.reconstruct(["The zebra !"], clean=False)


# ---- what is said


def test_nothing_is_said_of_usual_texts(model):
    assert model.notes([USUAL, "  the  dog sees a cat\n"]) == []


def test_unknown_words_are_said_in_python_too(model):
    with pytest.warns(UnusualText, match="2 of 5 words are unknown to this model: zebra, xylo"):
        model.reconstruct(["the zebra sees a xylophone"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the cat sleeps", "'the cat sleeps' has 3 tokens where training sentences have 4 to"),
        ("cat", "'cat' has 1 token where"),
    ],
)
def test_lengths_that_were_not_trained_on_are_said(model, text, said):
    with pytest.warns(UnusualText) as told:
        model.encode([text])
    assert [said in str(w.message) for w in told] == [True]


def test_a_limit_is_not_beyond_itself():
    rows = [[5] * 4, [5] * 6]
    assert length_note(["a", "b"], rows, (4, 6)) is None
    assert length_note(["a", "b"], rows, (5, 6)).startswith("1 of 2 texts: 'a' has 4 tokens")
    assert length_note(["a", "b"], rows, (4, 5)).startswith("1 of 2 texts: 'b' has 6 tokens")


@pytest.mark.parametrize(
    ("source", "want"), [("grammar", (MIN_WORDS, MAX_WORDS)), ("text", (7, 30))]
)
def test_training_lengths_are_the_limits_of_the_data(source, want):
    data = DataConfig(source=source, clean=CleanConfig(min_tokens=7, max_tokens=30))
    assert training_lengths(dataclasses.replace(tiny.config(), data=data)) == want


def test_lengths_that_were_not_counted_are_not_called_untrained(model):
    """A thousand sentences are counted, and the tails of a larger text are beyond them."""
    counted = np.zeros_like(model.count_probabilities)
    counted[5] = 1.0
    few = model.described(count_probabilities=counted)
    assert few.notes(["the dog sees a cat that sleeps"]) == []
