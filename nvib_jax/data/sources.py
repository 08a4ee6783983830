"""Reads raw documents, before cleaning, from the grammar, from files, from TFDS or from the Hub.

A document is a sentence (grammar), a line (files; layouts `lines` and `wikitext`), a paragraph
(files; layout `running`) or the text feature of an example (TFDS, Hub).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from nvib_jax.data.config import SPLITS, DataConfig, Layout, Split
from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.text_files import lines_of, split_files

_SNIFFED = 400  # lines that `detect_layout` looks at
_SNIFFED_OF_LINE = 4_000  # characters of each that it looks at
_LAST = 100  # characters at the end of a line that are searched for an end mark
_LONGEST_PARAGRAPH = 1 << 20  # characters; text without blank lines and end marks is cut there
_WIKITEXT_SIGN = re.compile(r"\s*= .* =\s*| @[-,.]@ ")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*+\s*+$")
_INNER_END = re.compile(r"[a-z,;0-9][.!?][\"'”’)\]]*\s+[\"'“‘(\[]*[A-Z]")


def read_sentences(config: DataConfig, split: Split) -> Iterator[str]:
    """Raw documents of one split, in order.

    Raises:
      FileNotFoundError: a file or glob of `text` matches nothing, data of `tfds:` are missing, or
        data of `hf:` cannot be had.
      ImportError: the package that reads `hf:` is not installed.
      ValueError: a file that is empty or not UTF-8; a TFDS name, split or feature that does not
        exist; TFDS data that need TensorFlow.
    """
    if config.source == "grammar":
        yield from default_grammar().sentences(
            (config.seed, SPLITS.index(split)), grammar_size(config, split)
        )
    elif config.source == "text":
        lines = lines_of(split_files(config, split))
        yield from _paragraphs(lines) if resolve_layout(config) == "running" else lines
    else:
        yield from _library(config).documents(config, split)


def has_split(config: DataConfig, split: Split) -> bool:
    """Whether the configuration names any data for a split."""
    if config.source == "grammar":
        return grammar_size(config, split) > 0
    if config.source == "text":
        return bool(getattr(config, split))
    return bool(_library(config).split_names(config, split))


def _library(config: DataConfig) -> Any:
    """The module that reads data sets of this source's library; it imports that library."""
    if config.hf_name:
        from nvib_jax.data import hf_source

        return hf_source
    from nvib_jax.data import tfds_source

    return tfds_source


def grammar_size(config: DataConfig, split: Split) -> int:
    """How many sentences of a split the configuration wants from the grammar."""
    return {"train": config.num_train, "validation": config.num_validation}.get(
        split, config.num_test
    )


def resolve_layout(config: DataConfig) -> Layout:
    """The layout; if it is `auto`, it is detected from the beginning of the training data."""
    if config.source == "grammar":
        return "lines"
    if config.layout != "auto":
        return config.layout
    if config.source == "text":
        return detect_layout(lines_of(split_files(config, "train")))
    detected = detect_layout(read_sentences(config, "train"))
    return "wikitext" if detected == "wikitext" else "running"


def detect_layout(lines: Iterable[str]) -> Layout:
    """Detect the layout: `wikitext` if there are headings or ` @-@ `, `lines` if most lines are one
    sentence, otherwise `running`.
    """
    seen = (line[:_SNIFFED_OF_LINE] for line in itertools.islice(lines, _SNIFFED))
    sample = [line for line in seen if line.strip()]
    if any(_WIKITEXT_SIGN.search(line) for line in sample):
        return "wikitext"
    several = sum(bool(_INNER_END.search(line)) for line in sample)
    unfinished = sum(not _SENTENCE_END.search(line) for line in sample)
    # In wrapped prose most lines end in the middle of a sentence, and some have end marks inside. A
    # list of sentences without end marks has none inside either.
    wrapped = several and unfinished > len(sample) / 2
    return "running" if wrapped or several > len(sample) / 4 else "lines"


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Join wrapped lines. Blank lines end a paragraph, and so do lines that end a sentence."""
    parts: list[str] = []
    size = 0
    for line in lines:
        stripped = line.strip()
        if stripped:
            parts.append(stripped)
            size += len(stripped)
        # Only the end of the line is searched, because a line may be as long as the file.
        ends = not stripped or _SENTENCE_END.search(stripped, max(0, len(stripped) - _LAST))
        if parts and (ends or size > _LONGEST_PARAGRAPH):
            yield " ".join(parts)
            parts, size = [], 0
    if parts:
        yield " ".join(parts)


def text_bytes(config: DataConfig) -> int:
    """The size of the text in bytes; 0 for the grammar."""
    if config.source == "grammar":
        return 0
    if config.source == "text":
        named = [split for split in SPLITS if has_split(config, split)]
        return sum(file.size for split in named for file in split_files(config, split))
    return _library(config).text_bytes(config)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """JSON values that identify the text which the configuration reads, for the cache's hash.

    Files are identified by their content and not by their names.
    """
    if config.source == "grammar":
        return {
            "grammar": default_grammar().digest,
            "seed": config.seed,
            "sizes": [grammar_size(config, split) for split in SPLITS],
        }
    if config.source == "text":
        named = [split for split in SPLITS if has_split(config, split) or split == "train"]
        digests = {split: [file.sha256() for file in split_files(config, split)] for split in named}
        return {"files": digests}
    return _library(config).fingerprint(config)
