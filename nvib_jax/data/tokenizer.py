"""A SentencePiece tokenizer that is one immutable value: the serialised model.

Ids 0 to 3 are padding, beginning, end and unknown. `encode` adds neither beginning nor end; callers
add them if they need them.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from nvib_jax.checks import check_choice
from nvib_jax.models.special_ids import SpecialIds

# WikiText's mark for a rare word. It is made a piece of its own, so that it is one token and
# decodes to itself. SentencePiece's unknown piece, which has this name by default, gets another.
_RARE_WORD = "<unk>"
_RARE_WORD_PIECES = ["▁<unk>", "<unk>"]
_UNKNOWN_PIECE = "<unknown>"
_UNKNOWN_SURFACE = "⁇"

_TRAINING: dict[str, Any] = {
    "hard_vocab_limit": False,
    "character_coverage": 1.0,
    "normalization_rule_name": "identity",
    "max_sentence_length": 1 << 20,
    **{f"{name}_id": getattr(SpecialIds(), name) for name in ("pad", "bos", "eos", "unk")},
    "unk_piece": _UNKNOWN_PIECE,
    "unk_surface": _UNKNOWN_SURFACE,
    # One thread, because several add up in varying order and machines would get different models.
    "num_threads": 1,
    "minloglevel": 2,
}
_MODEL_TYPES = {"subwords": "unigram", "words": "word", "characters": "char", "bytes": "char"}
# Stands for characters without a piece while SentencePiece trains. Of private use: no text has it.
_UNKNOWN = "\ue000"
_SPECIAL = 4  # padding, beginning, end, unknown


@dataclass(frozen=True)
class Tokenizer:
    """A trained SentencePiece model.

    Attributes:
      model: the serialised model, which is all that needs to be saved.
      special: the ids of padding, beginning and end of a sentence, and unknown words.

    >>> tokenizer = Tokenizer.train(["the dog", "the cat"], 50, pieces="words")
    >>> tokenizer.decode(tokenizer.encode("the cat"))
    'the cat'
    """

    model: bytes
    special: ClassVar[SpecialIds] = SpecialIds()

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        vocab_size: int,
        *,
        pieces: str = "subwords",
        report: Callable[[str], None] | None = None,
    ) -> Tokenizer:
        """Trains on sentences; the same sentences in the same order give the same bytes.

        Args:
          sentences: the text, a sentence each.
          vocab_size: pieces at most, the four special ones included; a corpus that has no use for
            so many gets fewer. Bytes are always as many.
          pieces: "subwords"; "words", each one piece and unseen ones unknown, for a closed
            vocabulary; "characters", the most frequent of them; or "bytes", the 256 of UTF-8 and
            the space, which write any text.
          report: called with a line of text where the corpus has more characters than the
            vocabulary has room for. The most frequent ones then fill it (of subwords half of it,
            so that words have room as well), and the rarest are unknown.

        Raises:
          ValueError: no sentences, unknown pieces, or a vocabulary too small for any text.
        """
        import sentencepiece

        corpus = [sentence for sentence in sentences if sentence.strip()]
        if not corpus:
            raise ValueError("the tokenizer needs at least one sentence to train on, got none")
        check_choice("pieces", pieces, tuple(_MODEL_TYPES))
        marked = pieces in ("subwords", "words") and any(_RARE_WORD in s for s in corpus)
        symbols = _RARE_WORD_PIECES if marked else []
        text = corpus
        options: dict[str, Any] = {}
        if pieces in ("characters", "bytes"):
            # A space before the first word makes it the same piece as elsewhere; spelled out, it
            # would be a character that is not there. Nor is one lost of several spaces.
            options = {"add_dummy_prefix": False, "remove_extra_whitespaces": False}
        if pieces == "bytes":
            # Every character but the space is unknown, and written as the bytes of its UTF-8.
            text = [f"{_UNKNOWN} {_UNKNOWN}"]
            options["byte_fallback"] = True
            vocab_size = _SPECIAL + 256 + 2
        elif pieces != "words":
            # Characters fill half of the vocabulary, so that subwords have room, or all of it.
            room = vocab_size // 2 if pieces == "subwords" else vocab_size - _SPECIAL - 2
            rare = _rarest_characters(corpus, vocab_size, room, symbols, report)
            if rare:
                # A symbol divides the text and is in no other piece, as is fit for what is unknown.
                text = [sentence.translate(dict.fromkeys(rare, _UNKNOWN)) for sentence in corpus]
                symbols = [*symbols, _UNKNOWN]
        writer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(text),
                model_writer=writer,
                model_type=_MODEL_TYPES[pieces],
                vocab_size=vocab_size,
                user_defined_symbols=symbols,
                # A twentieth of the default: five times faster, no longer sentences on WikiText-2.
                seed_sentencepiece_size=max(50_000, 10 * vocab_size),
                **options,
                **_TRAINING,
            )
        except (RuntimeError, OSError, ValueError) as error:
            characters = len(set().union(*corpus))
            raise ValueError(
                f"SentencePiece cannot train vocab_size={vocab_size} on {len(corpus)} sentences "
                f"with {characters} distinct characters: {error}"
            ) from error
        return cls(writer.getvalue())

    @functools.cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise ValueError(
                f"expected a serialised SentencePiece model, got {len(self.model)} other bytes"
            ) from error

    @property
    def ids(self) -> SpecialIds:
        """The special ids with that of a lone space, for models that treat spaces apart."""
        space = self._processor.piece_to_id("▁")
        return dataclasses.replace(self.special, space=space if space != self.special.unk else -1)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return self._processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without beginning or end."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, faster than one by one."""
        return self._processor.encode(list(texts))

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of many texts end to end, `[tokens]` int32, and their lengths, `[n]` int32."""
        rows = self._processor.encode(list(texts), num_threads=1)
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        total = int(lengths.sum())
        return np.fromiter(itertools.chain.from_iterable(rows), np.int32, total), lengths

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids up to the first end; padding and beginning are dropped, unknown is `⁇`."""
        return self._processor.decode(self._text_ids(ids)).strip()

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The piece of every id, special ones included."""
        return [self._processor.id_to_piece(int(i)) for i in ids]

    def _text_ids(self, ids: Iterable[int]) -> list[int]:
        kept: list[int] = []
        for i in map(int, ids):
            if i == self.special.eos:
                break
            if i not in self.special.unwritable:
                kept.append(i)
        return kept

    def to_bytes(self) -> bytes:
        """The serialised model."""
        return self.model

    @classmethod
    def from_bytes(cls, model: bytes) -> Tokenizer:
        """Inverse of `to_bytes`; raises ValueError for anything else."""
        tokenizer = cls(bytes(model))
        _ = tokenizer._processor
        return tokenizer

    def save(self, path: str | Path) -> None:
        """Writes the model to a file."""
        Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads a model that `save` wrote."""
        return cls.from_bytes(Path(path).read_bytes())


def _rarest_characters(
    corpus: Sequence[str],
    vocab_size: int,
    room: int,
    symbols: Sequence[str],
    report: Callable[[str], None] | None,
) -> list[int]:
    """Codes of all characters but the `room` most frequent; none if the vocabulary has all.

    SentencePiece can leave characters out itself, but no more than 2 % of the text.
    """
    texts = [text.replace(_RARE_WORD, "") for text in corpus] if symbols else corpus
    characters = set("▁").union(*texts) - {" "}
    if len(characters) + _SPECIAL + len(symbols) <= vocab_size:
        return []
    found: Counter[str] = Counter()
    for text in texts:
        found.update(text)
    total = found.total() - found.pop(" ", 0)
    rare = found.most_common()[room:]
    if report:
        share = sum(n for _, n in rare) / total
        report(
            f"vocabulary: no piece for the {len(rare):,} rarest of {len(found):,} characters, "
            f"{100 * share:.2f} % of the text, which are read as unknown (data.vocab_size)"
        )
    return [ord(character) for character, _ in rare]
