"""Cleans typed text as the training text was cleaned, and warns about what the model never saw.

A model knows only text that was cleaned in one way, with certain words and lengths. So typed text
is cleaned in the same way, and the person is told three things: what cleaning changed, which words
the model never saw, and which texts are shorter or longer than its training sentences. `TextModel`
issues them as warnings of the category `UnusualText`, and the command line prints those.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from nvib_jax.config import Config
from nvib_jax.data.clean import clean_text
from nvib_jax.data.config import DataConfig
from nvib_jax.data.grammar import MAX_WORDS, MIN_WORDS
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.text.engine import Engine, check_texts


class UnusualText(UserWarning):
    """Warns that a text is not read as it was typed, or is unlike the training text."""


def read(model: Engine, texts: Sequence[str], clean: bool) -> list[str]:
    """Texts for a model's tokenizer: cleaned, with warnings; or unchanged with `clean=False`.

    Only methods of `TextModel` may call it, because its warnings name the line two calls above.

    Raises:
      ValueError: not a list of texts, cleaning leaves nothing of a text, or the model is of a
        family that encodes no texts.
    """
    if not any(map(model.can, ("encode", "remember", "log_probs"))):
        model.check_can("encode")
    check_texts(texts)
    if not clean:
        return list(texts)
    for note in notes(model, texts):
        warnings.warn(note, UnusualText, stacklevel=3)
    return cleaned(model, texts)


def cleaned(model: Engine, texts: Sequence[str]) -> list[str]:
    """The texts, cleaned as the training text was; raises like `read`."""
    check_texts(texts)
    clean = cleaner(model.config.data, model.tokenizer)
    found = [clean(text) for text in texts]
    for text, left in zip(texts, found, strict=True):
        if text.strip() and not left:
            raise ValueError(
                f"of the text {_short(text)} nothing is left once it is cleaned as the training "
                "text was; wanted words"
            )
    return found


def cleaner(data: DataConfig, tokenizer: Tokenizer) -> Callable[[str], str]:
    """A function that cleans a typed sentence as the training text was cleaned.

    Sentences of files and of TFDS were cleaned as `data.clean` says. Those of the grammar were not
    cleaned, because they consist of lower-case words only; so capitals become lower case and
    punctuation is removed.
    """
    if data.source != "grammar":
        return lambda text: clean_text(text, data.clean)
    first_word = max(dataclasses.astuple(tokenizer.special)) + 1
    known = set("".join(tokenizer.pieces(range(first_word, tokenizer.vocab_size))))

    def clean(text: str) -> str:
        kept = (c if c.isalnum() or c in known else " " for c in text.lower())
        return " ".join("".join(kept).split())

    return clean


def notes(model: Engine, texts: Sequence[str]) -> list[str]:
    """The warnings about these texts, one sentence each; an empty list if there are none."""
    read_as = cleaned(model, texts)
    limits = training_lengths(model.config)
    found = (
        changed_note(texts, read_as),
        unknown_note(words_of(read_as), unknown_words(model, read_as)),
        length_note(read_as, model.tokenize(read_as), limits),
    )
    return [note for note in found if note]


def words_of(texts: Sequence[str]) -> list[str]:
    """The words of all texts (the parts between spaces), each once."""
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def unknown_words(model: Engine, texts: Sequence[str]) -> list[str]:
    """Words of the texts, not cleaned, that contain something the tokenizer does not know."""
    words = words_of(texts)
    rows = model.tokenizer.encode_batch(words)
    return [w for w, row in zip(words, rows, strict=True) if model.tokenizer.special.unk in row]


def training_lengths(config: Config) -> tuple[int, int]:
    """The shortest and the longest sentences a model can have been trained on, in tokens.

    The data's own limits. What a model counted of its training text is no limit, because that is a
    thousand sentences only, and a larger text has longer ones.
    """
    return config.data.limits or (MIN_WORDS, MAX_WORDS)


def changed_note(texts: Sequence[str], cleaned: Sequence[str]) -> str | None:
    """A sentence that says what cleaning changed beyond spaces, or None if it changed nothing."""
    pairs = zip(texts, cleaned, strict=True)
    changed = [(a, b) for a, b in pairs if "".join(a.split()) != "".join(b.split())]
    if not changed:
        return None
    count = f"{len(changed)} of {len(texts)} texts: " if len(texts) > 1 else ""
    typed, read = changed[0]
    return f"{count}{_short(typed)} is read as {_short(read)}, cleaned as the training text was"


def unknown_note(words: Sequence[str], unknown: Sequence[str]) -> str | None:
    """A sentence that says which words the model does not know, or None if it knows all."""
    if not unknown:
        return None
    named = ", ".join(unknown[:20]) + (" ..." if len(unknown) > 20 else "")
    return f"{len(unknown)} of {len(words)} words are unknown to this model: {named}"


def length_note(
    texts: Sequence[str], rows: Sequence[Sequence[int]], limits: tuple[int, int]
) -> str | None:
    """A sentence about texts shorter or longer than the training sentences, or None."""
    odd = [i for i, row in enumerate(rows) if not limits[0] <= len(row) <= limits[1]]
    if not odd:
        return None
    count = f"{len(odd)} of {len(texts)} texts: " if len(texts) > 1 else ""
    tokens = f"{len(rows[odd[0]])} token{'s' * (len(rows[odd[0]]) != 1)}"
    return (
        f"{count}{_short(texts[odd[0]])} has {tokens} where training sentences have {limits[0]} to "
        f"{limits[1]}: what is written for it may be made up"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def amount(keep: float | int) -> np.ndarray:
    """`keep` as an array of the kind that says what it is: float32 a share, int32 a number.

    Raises:
      ValueError: neither a share above 0 and at most 1 nor a whole number of at least 1.
    """
    whole = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
    if not whole and not (isinstance(keep, float) and 0 < keep <= 1):
        raise ValueError(
            f"keep is {keep!r}; wanted a share as 0.3, at most 1.0, or a whole number of vectors"
        )
    return np.asarray(keep, np.int32 if whole else np.float32)
