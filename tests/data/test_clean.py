"""Cleaning, step by step, on lines as WikiText and books have them."""

import pytest

from nvib_jax.data import clean
from nvib_jax.data.clean import clean_sentences
from nvib_jax.data.config import CleanConfig


def cleaned(*documents, layout="wikitext", **switches):
    return list(clean_sentences(documents, CleanConfig(**switches), layout))


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        (" = Homarus gammarus = ", True),
        (" = = = Early life = = = ", True),
        ("= x =", True),
        (" The ratio a = b is exact . ", False),
        (" = is a sign . ", False),
        ("=", False),
    ],
)
def test_headings(line, heading):
    assert clean.is_heading(line) == heading


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He ran . She sat .", ["He ran .", "She sat ."]),
        ("H. gammarus is blue . It is big .", ["H. gammarus is blue .", "It is big ."]),
        ('It was " great . " Then it ended .', ['It was " great . "', "Then it ended ."]),
        ('He left . " Why ? " she asked .', ["He left .", '" Why ? " she asked .']),
        ("She sang ( twice ! ) . <unk> left .", ["She sang ( twice ! ) .", "<unk> left ."]),
        ("In Who ? , a song , he sang", ["In Who ? , a song , he sang"]),
        ("' Stop ! ' He ran .", ["' Stop ! '", "He ran ."]),
        ("It cost 2 @.@ 5 . 30 came .", ["It cost 2 @.@ 5 .", "30 came ."]),
        ("", []),
        (" . ", ["."]),
    ],
)
def test_tokenised_text_is_split_at_standalone_marks(text, sentences):
    assert clean.split_tokenised(text) == sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He ran. She sat!  They left?", ["He ran.", "She sat!", "They left?"]),
        ("Mr. Smith met Dr. J. Doe. He spoke.", ["Mr. Smith met Dr. J. Doe.", "He spoke."]),
        ('"Who?" he asked. "Me." She hid.', ['"Who?" he asked.', '"Me."', "She hid."]),
        ("It cost 2.5 pounds. 30 came.", ["It cost 2.5 pounds.", "30 came."]),
        ("So am I. You too.", ["So am I.", "You too."]),
        ("no end mark", ["no end mark"]),
        ("Été. Übung.", ["Été.", "Übung."]),
        ("  ", []),
    ],
)
def test_prose_is_split_at_end_marks(text, sentences):
    assert clean.split_running(text) == sentences


def test_wikitext_lines_from_end_to_end():
    assert cleaned(
        " = Lobster = ",
        " ",
        " It weighs 0 @.@ 7 – 2 @.@ 2 kg , or 1 @,@ 000 g ( a lot ) . The red @-@ tipped ones "
        "of H. americanus don 't <unk> . ",
        ' He said " It \'s a naïve café ! " and left . ',
    ) == [
        "it weighs 0.7 2.2 kg, or 1,000 g a lot.",
        "the red tipped ones of h. americanus don't <unk>.",
        "he said it's a nave caf and left.",
    ]


def test_every_step_has_a_switch():
    line = " Ten @-@ odd Men — ran , he said . They sat . "
    assert cleaned(line) == ["ten odd men ran, he said.", "they sat."]
    assert cleaned(line, lowercase=False)[0] == "Ten odd Men ran, he said."
    assert cleaned(line, join_punctuation=False)[0] == "ten odd men ran , he said ."
    assert cleaned(line, keep_characters="")[0] == "ten-odd men — ran, he said."
    assert cleaned(line, join_marks=False, keep_characters="")[0].startswith("ten @-@ odd")
    assert cleaned(line, split_sentences=False) == ["ten odd men ran, he said. they sat."]
    assert cleaned(" = A = ", drop_headings=False) == ["a"]
    assert cleaned(" = A = ", "", "  ") == []


def test_lines_are_not_split():
    assert cleaned("He ran. She sat.", layout="lines") == ["he ran. she sat."]
    assert cleaned("He ran. She sat.", layout="running") == ["he ran.", "she sat."]


def test_typographic_quotes_count_as_plain():
    assert cleaned("Don’t “go” there", layout="lines") == ["don't go there"]


def test_bad_character_class():
    with pytest.raises(ValueError, match=r"clean.keep_characters .* got 'z-a'"):
        cleaned("x", keep_characters="z-a")
