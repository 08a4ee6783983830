"""Where text comes from: the grammar, files, or TFDS. Out come raw documents, before cleaning.

A document is a sentence (grammar), a line (files; layouts `lines` and `wikitext`), a paragraph
(files; layout `running`) or the text feature of an example (TFDS).
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nvib_jax.data.config import SPLITS, DataConfig, Layout, Split
from nvib_jax.data.grammar import default_grammar

_SNIFFED = 400
_WIKITEXT_SIGN = re.compile(r"\s*= .* =\s*| @[-,.]@ ")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s*$")
_INNER_END = re.compile(r"[a-z,;0-9][.!?][\"'”’)\]]*\s+[\"'“‘(\[]*[A-Z]")


def read_sentences(config: DataConfig, split: Split) -> Iterator[str]:
    """Raw documents of one split, in order.

    Raises:
      FileNotFoundError: a file or glob of `text` that matches nothing, or no data of `tfds:` here.
      ValueError: a file that is empty or not UTF-8; a TFDS name, split or feature that does not
        exist; TFDS data that need TensorFlow.
    """
    if config.source == "grammar":
        yield from default_grammar().sentences(
            (config.seed, SPLITS.index(split)), grammar_size(config, split)
        )
    elif config.source == "text":
        lines = _lines(split_files(config, split))
        yield from _paragraphs(lines) if resolve_layout(config) == "running" else lines
    else:
        from nvib_jax.data import tfds_source

        yield from tfds_source.documents(config, split)


def has_split(config: DataConfig, split: Split) -> bool:
    """Whether the configuration names any data for a split."""
    if config.source == "grammar":
        return grammar_size(config, split) > 0
    if config.source == "text":
        return bool(getattr(config, split))
    from nvib_jax.data import tfds_source

    return bool(tfds_source.split_names(config, split))


def grammar_size(config: DataConfig, split: Split) -> int:
    """Sentences that the configuration asks of the grammar."""
    return {"train": config.num_train, "validation": config.num_validation}.get(
        split, config.num_test
    )


def resolve_layout(config: DataConfig) -> Layout:
    """The layout, told from the beginning of the training data where it is `auto`."""
    if config.source == "grammar":
        return "lines"
    if config.layout != "auto":
        return config.layout
    if config.source == "text":
        return detect_layout(_lines(split_files(config, "train")))
    detected = detect_layout(read_sentences(config, "train"))
    return "wikitext" if detected == "wikitext" else "running"


def detect_layout(lines: Iterable[str]) -> Layout:
    """`wikitext` where headings or ` @-@ ` are seen, `lines` where most lines are one sentence."""
    sample = [line for line in itertools.islice(lines, _SNIFFED) if line.strip()]
    if any(_WIKITEXT_SIGN.search(line) for line in sample):
        return "wikitext"
    several = sum(bool(_INNER_END.search(line)) for line in sample)
    unfinished = sum(not _SENTENCE_END.search(line) for line in sample)
    # Wrapped prose ends most lines in the middle of a sentence and yet has end marks inside lines;
    # a list of sentences without end marks has none.
    wrapped = several and unfinished > len(sample) / 2
    return "running" if wrapped or several > len(sample) / 4 else "lines"


def split_files(config: DataConfig, split: Split) -> list[Path]:
    """The files of a split of a `text` source, each once, globs in sorted order.

    Raises:
      FileNotFoundError: a path or glob that matches no file.
      ValueError: no files are named for `train`, or a file is empty.
    """
    patterns: tuple[str, ...] = getattr(config, split)
    if not patterns:
        raise ValueError(f"data.source='text' needs files in data.{split}, got none")
    files: dict[Path, None] = {}
    for pattern in patterns:
        expanded = str(Path(pattern).expanduser())
        found = [Path(expanded)] if Path(expanded).is_file() else _glob(expanded)
        if not found:
            raise FileNotFoundError(f"data.{split} names no file: {pattern!r} matches nothing")
        files.update(dict.fromkeys(found))
    for file in files:
        if file.stat().st_size == 0:
            raise ValueError(f"data.{split}: {file} is empty, expected UTF-8 text")
    return list(files)


def _glob(pattern: str) -> list[Path]:
    return [Path(p) for p in sorted(glob.glob(pattern, recursive=True)) if Path(p).is_file()]


def _lines(files: Iterable[Path]) -> Iterator[str]:
    """Lines of UTF-8 files; a byte order mark is dropped."""
    for file in files:
        offset = 0
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{file} is not UTF-8: byte 0x{raw[error.start]:02x} at offset "
                        f"{offset + error.start} (line {number}); convert it to UTF-8 first"
                    ) from error
                offset += len(raw)
                yield line.rstrip("\r\n").removeprefix("\ufeff")


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Joins wrapped lines. Blank lines end a paragraph, and so do lines that end a sentence."""
    parts: list[str] = []
    for line in lines:
        if line.strip():
            parts.append(line.strip())
        if parts and (not line.strip() or _SENTENCE_END.search(line)):
            yield " ".join(parts)
            parts = []
    if parts:
        yield " ".join(parts)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """What identifies the text that the configuration reads, for the cache's hash.

    Files are known by their content and not by their names; TFDS data by version and size.
    """
    if config.source == "grammar":
        return {
            "grammar": default_grammar().digest,
            "seed": config.seed,
            "sizes": [grammar_size(config, split) for split in SPLITS],
        }
    if config.source == "text":
        named = [split for split in SPLITS if has_split(config, split) or split == "train"]
        digests = {split: [_sha256(file) for file in split_files(config, split)] for split in named}
        return {"files": digests}
    from nvib_jax.data import tfds_source

    return tfds_source.fingerprint(config)
