"""Cleaning, step by step, on lines as WikiText and books have them."""

import time
from collections import Counter

import pytest

from nvib_jax.data import clean, sentence_ends
from nvib_jax.data.clean import Cleaner, clean_text
from nvib_jax.data.config import PUBLISHED_CHARACTERS, CleanConfig
from nvib_jax.data.dropped import Dropped

GERMAN = "Die Ärztin zählt die Tür"


def published(**switches):
    return CleanConfig(**{"keep_characters": PUBLISHED_CHARACTERS, **switches})


def cleaned(*documents, layout="wikitext", **switches):
    return Cleaner(published(**switches), layout).sentences(documents)[0]


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
    assert sentence_ends.split_tokenised(text) == sentences


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
    assert sentence_ends.split_running(text) == sentences


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
    with pytest.raises(ValueError, match=r"data.clean.keep_characters .* got 'z-a'"):
        cleaned("x", keep_characters="z-a")


# ---- other languages, and what is lost


@pytest.mark.parametrize(
    "text",
    [
        GERMAN,
        "Él comió ñandú – ¿verdad?",
        "Мама мыла раму.",
        "हिन्दी में एक वाक्य",  # vowel signs are marks, no letters
        "نص عربي",
        "日本語の文、です。",
        "e\u0301te\u0301 à 20 °C; 5 € (about ½)",
    ],
)
def test_no_character_of_any_language_is_lost_by_default(text):
    sentences, dropped = Cleaner(CleanConfig(), "lines").sentences([text])
    assert sentences == [text.lower()]
    assert dropped.characters == len(text.replace(" ", ""))
    assert not dropped.lost
    assert not dropped.of_characters()


def test_what_the_published_characters_lose_is_counted_and_shown():
    documents = [GERMAN, "“Red-tipped” don’t", "!?", " ", " = A heading = "]
    sentences, dropped = Cleaner(published(), "lines").sentences(documents)
    assert sentences == ["die rztin zhlt die tr", "red tipped don't"]
    assert dropped.lost == {"Ä": 1, "ä": 1, "ü": 1, "“": 1, "”": 1, "-": 1, "!": 1, "?": 1}
    assert (dropped.sentences, dropped.empty, dropped.headings) == (3, 1, 1)
    text = "".join(documents[:3]).replace(" ", "")
    assert dropped.characters == len(text)
    share = f"{100 * 8 / len(text):.1f} %"
    assert dropped.of_characters().startswith(f"{share} of the characters dropped, mostly ")
    assert f"letters among them 3, as in {GERMAN!r}" in dropped.of_characters()
    assert "1 empty after cleaning" in dropped.of_sentences(6, 49)


def test_control_characters_are_spaces():
    assert clean_text("a\x00b\u2581c\td\u2028e", CleanConfig()) == "a b c d e"


def test_one_sentence_as_a_person_types_it():
    typed = ' My name is "Clara" . She\'s = a  @-@ b = '
    assert clean_text(typed, CleanConfig()) == 'my name is "clara". she\'s = a-b ='
    assert clean_text(typed, published()) == "my name is clara. she's a b"
    assert clean_text(" = Title = ", CleanConfig(lowercase=False)) == "= Title ="
    # What training text was made of is what typing the same gives.
    sentence = ' He said " It \'s a naïve café ! " and left . '
    assert [clean_text(sentence, published())] == cleaned(sentence)


LONG = 100_000


@pytest.mark.parametrize(
    "text",
    ["word " * LONG, "." * LONG, "mr. a " * LONG, '. " , a ' * LONG, " " * LONG + "a", ".)" * LONG,
     "@-@ " * LONG, "= " * LONG],
    ids=lambda t: t[:8],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["running", "wikitext"])
def test_cleaning_takes_time_in_proportion_to_the_text(text, layout):
    """Ten times the text takes ten times as long and not a hundred; the best of three each."""

    def seconds(text):
        start = time.process_time()
        cleaned(text, layout=layout)
        return time.process_time() - start

    short = max(min(seconds(text[: len(text) // 10]) for _ in range(3)), 2e-3)
    assert min(seconds(text) for _ in range(3)) < 50 * short


@pytest.mark.parametrize(
    ("part", "share"), [(1000, "100.0 %"), (996, "99.6 %"), (125, "12.5 %"), (2, "0.2 %")]
)
def test_shares_are_per_cent_as_one_reads_them(part, share):
    dropped = Dropped(sentences=1000, empty=part)
    assert dropped.of_sentences(6, 49).startswith(f"{share} of the sentences dropped: ")


def test_a_share_that_is_almost_nothing_is_not_nothing():
    dropped = Dropped(characters=10**6, lost=Counter("é"), lossy=["né"])
    assert dropped.of_characters().startswith("less than 0.1 % of the characters dropped")
