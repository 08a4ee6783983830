"""The data's configuration: where text comes from, how it is cleaned, tokenised and batched.

These are frozen dataclasses that need only the standard library, so that the command line can show
them quickly. The string under each field is its help text.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nvib_jax.fields import check_fields

Split = Literal["train", "validation", "test"]
Layout = Literal["auto", "lines", "running", "wikitext"]
Pieces = Literal["auto", "subwords", "words", "characters", "bytes"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TFDS_PREFIX, HF_PREFIX = "tfds:", "hf:"

# Fields that prepared data do not depend on.
OF_BATCHES = frozenset({"batch_size", "buckets", "cache_dir", "digest"})

# The characters of the published NVAE's WikiText sentences, for `CleanConfig.keep_characters`.
PUBLISHED_CHARACTERS = "a-zA-Z0-9 ,'<>."


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """The steps from raw text to sentences, in order. Sentences of the grammar skip all of them,
    but for the two limits where they are spelled out in characters or bytes.

    >>> CleanConfig(keep_characters="a-z ").lowercase
    True
    """

    drop_headings: bool = True
    """Drop lines that stand between equals signs, as WikiText's ` = Title = ` do."""
    split_sentences: bool = True
    """Split paragraphs into sentences (never where the layout is `lines`)."""
    join_marks: bool = True
    """Undo WikiText's marks inside words and numbers: `1 @,@ 000` to `1,000`, `@-@` to `-`."""
    keep_characters: str = ""
    """Characters kept, as the inside of a regular expression's brackets; empty keeps all, of every
    language. A symbol that is not kept leaves a space, a letter that is not kept leaves nothing."""
    join_punctuation: bool = True
    """No space before `.`, `,` and `'`."""
    lowercase: bool = True
    """Lower-case letters."""
    min_tokens: int = 6
    """Shortest sentence kept, in SentencePiece tokens without end-of-sentence."""
    max_tokens: int = 49
    """Longest sentence kept, in SentencePiece tokens without end-of-sentence."""

    def __post_init__(self) -> None:
        check_fields(self, "data.clean")
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                "data.clean.min_tokens and data.clean.max_tokens must satisfy 1 <= min <= max, "
                f"got {self.min_tokens} and {self.max_tokens}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus and how it becomes batches.

    >>> DataConfig(source="text", train=("corpus/*.txt",)).source
    'text'
    """

    source: str = "grammar"
    """`grammar` (embedded, unlimited), `text` (files), `tfds:NAME` (a TFDS data set), or
    `hf:USER/NAME` (one of the Hugging Face Hub, streamed; also `hf:USER/NAME:CONFIG@REVISION`)."""
    train: tuple[str, ...] = ()
    """`text`: files, globs or folders (their `*.txt`), also as a URL such as `gs://bucket/*.txt`.
    `tfds:` and `hf:`: split names, empty for the split called `train`."""
    validation: tuple[str, ...] = ()
    """As `train`, for the split that training watches. Without files there is no such split."""
    test: tuple[str, ...] = ()
    """As `train`, for the split that reports use. Without files there is no such split."""
    layout: Layout = "auto"
    """`lines`: one sentence a line. `running`: prose, wrapped or not. `wikitext`: tokenised, end
    marks standing alone. `auto`: told from the first lines of the training data."""
    text_feature: str = "text"
    """`tfds:` and `hf:` only: the feature that holds the text."""
    tfds_dir: str = ""
    """`tfds:` only: where TFDS keeps its data; empty for TFDS's own default."""
    pieces: Pieces = "auto"
    """What a token is: a subword, a word, a character, or a byte of its UTF-8. `auto`: words for
    the grammar, subwords for other text."""
    vocab_size: int = 4000
    """SentencePiece vocabulary, at most; a small corpus gets fewer. For the grammar: its words."""
    tokenizer_sentences: int = 200_000
    """Training sentences that SentencePiece sees, at most, evenly spread over the corpus."""
    num_train: int = 60_000
    """`grammar` only: training sentences."""
    num_validation: int = 2_000
    """`grammar` only: validation sentences."""
    num_test: int = 2_000
    """`grammar` only: test sentences."""
    seed: int = 0
    """`grammar` only: names the corpus that is drawn."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Cleaning of all sources but `grammar`."""
    cache_dir: str = ""
    """Where prepared data are kept, under a hash of their content; empty means `$NVIB_CACHE`, and
    where that is not set `~/.cache/nvib_jax`."""
    digest: str = ""
    """The hash of prepared data, which a run notes down: they are then found without their text."""
    batch_size: int = 128
    """Sentences in a global batch, whatever the bucket."""
    buckets: tuple[int, ...] = ()
    """Padded lengths in tokens, each a static shape; empty chooses four for the least padding. A
    preset's are for the preset's text: they are chosen anew where the command line names another
    `source`, or longer sentences.
    """

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if self.source not in ("grammar", "text") and not (self.tfds_name or self.hf_name):
            raise ValueError(
                "data.source must be 'grammar', 'text', 'tfds:NAME' or 'hf:USER/NAME', "
                f"got {self.source!r}"
            )
        if self.digest and not re.fullmatch("[0-9a-f]{16}", self.digest):
            raise ValueError(
                f"data.digest is {self.digest!r}; wanted 16 hexadecimal digits, or nothing"
            )
        for name in ("vocab_size", "tokenizer_sentences", "num_train", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_validation", "num_test", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be at least 0, got {getattr(self, name)}")
        if list(self.buckets) != sorted({b for b in self.buckets if b > 0}):
            raise ValueError(f"data.buckets must be positive and rising, got {self.buckets}")

    @property
    def limits(self) -> tuple[int, int] | None:
        """Fewest and most tokens of a sentence; None for the grammar's words, which need none."""
        if self.source == "grammar" and self.pieces not in ("characters", "bytes"):
            return None
        return self.clean.min_tokens, self.clean.max_tokens

    @property
    def tfds_name(self) -> str:
        """The TFDS name of a `tfds:NAME` source, otherwise empty."""
        is_tfds = self.source.startswith(TFDS_PREFIX)
        return self.source.removeprefix(TFDS_PREFIX) if is_tfds else ""

    @property
    def hf_name(self) -> str:
        """What follows `hf:`, otherwise empty."""
        return self.source.removeprefix(HF_PREFIX) if self.source.startswith(HF_PREFIX) else ""


def cache_root(config: DataConfig) -> Path:
    """The folder of prepared data: `cache_dir`, else `$NVIB_CACHE`, else `~/.cache/nvib_jax`.

    Raises:
      NotImplementedError: it is a URL, but memory-mapping prepared data needs a local disk.
    """
    named = config.cache_dir or os.environ.get("NVIB_CACHE") or "~/.cache/nvib_jax"
    if "://" in named:
        raise NotImplementedError(
            f"data.cache_dir or NVIB_CACHE is {named!r}, a URL; wanted a folder, such as one where "
            "the bucket is mounted (tpu_scripts/README.md)"
        )
    return Path(named).expanduser()


def relocated(config: DataConfig) -> DataConfig:
    """A run's data config for a reader, who may be on another machine.

    The `cache_dir` that the run used is dropped if `$NVIB_CACHE` is set, or if that folder does not
    exist here.
    """
    here = config.cache_dir and Path(config.cache_dir).expanduser().is_dir()
    if here and not os.environ.get("NVIB_CACHE"):
        return config
    return dataclasses.replace(config, cache_dir="")


def fit_to_text(config: DataConfig, preset: DataConfig) -> DataConfig:
    """Drop the preset's buckets and digest from a config that reads another text than the preset.

    A preset's buckets fit the preset's sentences. They stay where other files are named, because
    the preset's own text may lie elsewhere; another source or longer sentences have others. A
    preset's digest is of the preset's data, and goes with any change of them.
    """
    changes: dict[str, Any] = {}
    other = config.source != preset.source or config.clean.max_tokens > preset.clean.max_tokens
    if other and config.buckets == preset.buckets:
        changes["buckets"] = ()
    of_text = {field.name for field in dataclasses.fields(config)} - OF_BATCHES
    if any(getattr(config, name) != getattr(preset, name) for name in of_text):
        changes["digest"] = "" if config.digest == preset.digest else config.digest
    return dataclasses.replace(config, **changes)
