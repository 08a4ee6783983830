"""The tokenizer: round trips, special ids, determinism, corpora of all sizes."""

import dataclasses

import pytest

from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.tokenizer import Tokenizer

SENTENCES = [
    "the lobster is blue, and it weighs 0.7 kg.",
    "she found <unk> on the island's shore.",
    "<unk> was not a <unk> of the <unk>, he said.",
    "it's 1,000 miles to the old town.",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(SENTENCES, 60)


@pytest.fixture(scope="module")
def grammar_tokenizer():
    return Tokenizer.train(sorted(default_grammar().words), 4000, pieces="words")


@pytest.mark.parametrize("sentence", SENTENCES[:4])
def test_round_trip(tokenizer, sentence):
    ids = tokenizer.encode(sentence)
    assert tokenizer.decode(ids) == sentence
    assert min(ids) > tokenizer.special.unk
    assert max(ids) < tokenizer.vocab_size


def test_batches_encode_as_singles(tokenizer):
    assert tokenizer.encode_batch(SENTENCES) == [tokenizer.encode(s) for s in SENTENCES]
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.encode("") == []


def test_special_ids(tokenizer):
    special = list(dataclasses.astuple(tokenizer.special))
    assert special.pop() == -1
    assert special == [0, 1, 2, 3]
    assert tokenizer.pieces(special) == ["<pad>", "<s>", "</s>", "<unknown>"]
    ids = tokenizer.encode("the old town")
    assert tokenizer.decode([1, *ids, 2, *ids, 0, 0]) == "the old town"
    assert tokenizer.decode([0, *ids, 0]) == "the old town"
    assert tokenizer.decode([2, *ids]) == tokenizer.decode([]) == ""
    # Written out, they are text and not control.
    assert not {0, 1, 2} & set(tokenizer.encode("</s> <s> <pad>"))


def test_unknown_characters_are_shown(tokenizer):
    assert 3 in tokenizer.encode("the ω town")
    assert tokenizer.decode(tokenizer.encode("the ω town")) == "the ⁇ town"


def test_the_rare_word_mark_is_one_piece(tokenizer):
    assert tokenizer.pieces(tokenizer.encode("a <unk> <unk>")) == ["▁a", "▁<unk>", "▁<unk>"]


def test_training_is_deterministic(tokenizer):
    assert Tokenizer.train(SENTENCES, 60).to_bytes() == tokenizer.to_bytes()
    assert Tokenizer.train(SENTENCES[:2], 60) != tokenizer


def test_bytes_and_files_hold_everything(tokenizer, tmp_path):
    assert Tokenizer.from_bytes(tokenizer.to_bytes()) == tokenizer
    tokenizer.save(tmp_path / "t.model")
    loaded = Tokenizer.load(tmp_path / "t.model")
    assert loaded.encode(SENTENCES[0]) == tokenizer.encode(SENTENCES[0])
    with pytest.raises(ValueError, match="expected a serialised SentencePiece model, got 4 other"):
        Tokenizer.from_bytes(b"none")


def test_a_small_corpus_gets_fewer_pieces():
    tokenizer = Tokenizer.train(["a b c", "c b a"], 4000)
    assert tokenizer.vocab_size < 20
    assert tokenizer.decode(tokenizer.encode("a c b")) == "a c b"


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="at least one sentence to train on, got none"):
        Tokenizer.train(["", "  "], 100)
    message = "vocab_size=8 on 20 sentences with 27 distinct characters"
    with pytest.raises(ValueError, match=message):
        Tokenizer.train(SENTENCES, 8)


def test_more_characters_than_the_vocabulary_has_room_for():
    """As in Chinese: the most frequent fill half of the vocabulary, the rarest are unknown."""
    frequent = [chr(0x4E00 + i) for i in range(20)]
    corpus = ["".join(frequent[i % 20] for i in range(j, j + 12)) for j in range(40)]
    corpus += [chr(0x5E00 + i) + frequent[i % 20] for i in range(60)]
    told = []
    tokenizer = Tokenizer.train(corpus, 50, report=told.append)
    assert tokenizer.vocab_size <= 50
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in corpus[:40])
    assert len(told) == 1
    assert "no piece for the 55 rarest of 80 characters, 9.17 % of the text" in told[0]
    known = [c for c in map(chr, range(0x5E00, 0x5E00 + 60)) if tokenizer.special.unk not in
             tokenizer.encode(c)]  # fmt: skip
    assert len(known) == 5  # with the 20 frequent ones half of 50


def test_characters_that_just_fit_are_all_covered():
    """26 letters, the space and four special pieces: 31."""
    corpus, told = ["the dog sees a cat", "a quick brown fox jumps", "over lazy dogs xyz"], []
    tokenizer = Tokenizer.train(corpus, 31, report=told.append)
    assert all(tokenizer.special.unk not in tokenizer.encode(text) for text in corpus)
    assert told == []
    assert Tokenizer.train(corpus, 30, report=told.append).vocab_size <= 30
    assert "11 rarest of 26" in told[0]


def test_every_word_of_the_grammar_is_one_piece(grammar_tokenizer):
    words = default_grammar().words
    assert all(len(grammar_tokenizer.encode(word)) == 1 for word in words)
    assert grammar_tokenizer.vocab_size == len(words) + 4
    for sentence in default_grammar().sentences(5, 200):
        ids = grammar_tokenizer.encode(sentence)
        assert len(ids) == len(sentence.split())
        assert grammar_tokenizer.decode(ids) == sentence


def test_characters_and_bytes_are_themselves():
    """Every space counts, at the ends too, and bytes write what no training text has."""
    characters = Tokenizer.train(["the dog sees", "a cat"], 100, pieces="characters")
    text = " the  cat "
    assert "".join(characters.pieces(characters.encode(text))) == text.replace(" ", "▁")
    assert characters.ids.space == characters.encode(" ")[0]
    assert characters.vocab_size == 4 + len(set("the dog sees a cat"))
    octets = Tokenizer.train(["the dog"], 5, pieces="bytes")
    for text in ("the dog", "Grüße – 猫 🐶"):
        assert octets.decode(octets.encode(text)) == text
        assert len(octets.encode(text)) == len(text.encode())
    assert octets.special.unk not in octets.encode("Ω")
    with pytest.raises(ValueError, match="pieces is 'letters'; wanted one of 'subwords'"):
        Tokenizer.train(["the dog"], 100, pieces="letters")


def test_a_vocabulary_too_small_keeps_the_commonest_characters():
    said = []
    found = Tokenizer.train(["aaaa bbb cc d"], 8, pieces="characters", report=said.append)
    assert found.decode(found.encode("abc d")) == "ab⁇ ⁇"
    assert "no piece for the 2 rarest of 4 characters" in said[0]
