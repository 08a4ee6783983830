"""What a person types -> what a model was trained to read, and what the person should know of it.

A model knows its training text only: cleaned in one way, of some words, of some lengths. What is
typed is cleaned in the same way, and three things are said rather than kept silent: what cleaning
changed, which words the model never saw, and which texts are shorter or longer than those it saw.
`TextModel` says them as warnings of the category `UnusualText`, and the command prints those.
"""

import warnings
from collections.abc import Callable, Sequence

from nvib_jax.data.clean import clean_text
from nvib_jax.data.config import DataConfig
from nvib_jax.data.grammar import MAX_WORDS, MIN_WORDS
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.engine import Engine, check_texts
from nvib_jax.training.config import Config


class UnusualText(UserWarning):
    """A text that a model reads otherwise than it was typed, or that it never learned to read."""


def read(model: Engine, texts: Sequence[str], clean: bool) -> list[str]:
    """Texts for a model's tokenizer: cleaned and warned of, or with `clean=False` as they stand.

    Called by a method of `TextModel`: the warnings name the line that called that method.

    Raises:
      ValueError: no list of texts, or a text of which cleaning leaves nothing.
    """
    check_texts(texts)
    if not clean:
        return list(texts)
    for note in notes(model, texts):
        warnings.warn(note, UnusualText, stacklevel=3)
    return cleaned(model, texts)


def cleaned(model: Engine, texts: Sequence[str]) -> list[str]:
    """Each text as the training text was cleaned; raises like `read`."""
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
    """What makes a typed sentence one of the training text's kind.

    Sentences of files and of TFDS were cleaned as `data.clean` says. Those of the grammar were not;
    they have lower-case words alone, so that capitals and punctuation are what has to go.
    """
    if data.source != "grammar":
        return lambda text: clean_text(text, data.clean)
    first_word = max(tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) + 1
    known = set("".join(tokenizer.pieces(range(first_word, tokenizer.vocab_size))))

    def clean(text: str) -> str:
        kept = (c if c.isalnum() or c in known else " " for c in text.lower())
        return " ".join("".join(kept).split())

    return clean


def notes(model: Engine, texts: Sequence[str]) -> list[str]:
    """What a person should know before the model reads the texts: a sentence each, or none."""
    read_as = cleaned(model, texts)
    limits = training_lengths(model.config)
    found = (
        changed_note(texts, read_as),
        unknown_note(words_of(read_as), unknown_words(model, read_as)),
        length_note(read_as, model.tokenize(read_as), limits),
    )
    return [note for note in found if note]


def words_of(texts: Sequence[str]) -> list[str]:
    """What stands between spaces, once each."""
    return list(dict.fromkeys(word for text in texts for word in text.split()))


def unknown_words(model: Engine, texts: Sequence[str]) -> list[str]:
    """Words of the texts, as they stand, that hold something the tokenizer does not know."""
    words = words_of(texts)
    rows = model.tokenizer.encode_batch(words)
    return [w for w, row in zip(words, rows, strict=True) if model.tokenizer.unk_id in row]


def training_lengths(config: Config) -> tuple[int, int]:
    """The shortest and the longest sentences a model can have been trained on, in tokens.

    The data's own limits. What a model counted of its training text is no limit, because that is a
    thousand sentences only, and a larger text has longer ones.
    """
    if config.data.source == "grammar":
        least, most = MIN_WORDS, MAX_WORDS
    else:
        least, most = config.data.clean.min_tokens, config.data.clean.max_tokens
    return least, most


def changed_note(texts: Sequence[str], cleaned: Sequence[str]) -> str | None:
    """What cleaning changed beyond spaces, in a sentence, or None."""
    pairs = zip(texts, cleaned, strict=True)
    changed = [(a, b) for a, b in pairs if "".join(a.split()) != "".join(b.split())]
    if not changed:
        return None
    count = f"{len(changed)} of {len(texts)} texts: " if len(texts) > 1 else ""
    typed, read = changed[0]
    return f"{count}{_short(typed)} is read as {_short(read)}, cleaned as the training text was"


def unknown_note(words: Sequence[str], unknown: Sequence[str]) -> str | None:
    """Which words the model cannot write, in a sentence, or None."""
    if not unknown:
        return None
    named = ", ".join(unknown[:20]) + (" ..." if len(unknown) > 20 else "")
    return f"{len(unknown)} of {len(words)} words are unknown to this model: {named}"


def length_note(
    texts: Sequence[str], rows: Sequence[Sequence[int]], limits: tuple[int, int]
) -> str | None:
    """Which texts are of lengths that the model was not trained on, in a sentence, or None."""
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
