"""The stages of preparing: text -> clean sentences in a file -> tokenizer -> flat files of ids.

Text is processed in blocks of about a megabyte, by several processes if the text is long enough.
A block's result depends on the block alone, so the files are the same to the byte with any number
of processes, and memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data import sources
from nvib_jax.data.clean import Cleaner
from nvib_jax.data.config import OF_BATCHES, SPLITS, CleanConfig, DataConfig, Layout, Split
from nvib_jax.data.dropped import Dropped
from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.prepared import (
    FORMAT_VERSION,
    METADATA,
    TOKENIZER,
    checksums_name,
    lengths_name,
    sealed,
    token_file_name,
)
from nvib_jax.data.token_file import TokenWriter, dtype_of
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.data.workers import ordered_map, usable_cores

_BLOCK = 1 << 20  # characters of documents or bytes of sentences that a process gets at once
_PAYS_FROM = 8 << 20  # bytes of text from which starting processes is faster
_SAMPLED_BYTES = 64 << 20  # most bytes of sentences that the tokenizer is trained on
_SAMPLED_OF_SENTENCE = 4096  # most characters of each, because training is quadratic in them

Progress = Callable[[str], None]
Limits = tuple[int, int] | None


def build(
    config: DataConfig, digest: str, folder: Path, report: Progress, workers: int | None = None
) -> None:
    """Write a whole cache into `folder`, the metadata last.

    Args:
      config: what to prepare.
      digest: the hash of the config and the text.
      folder: an empty folder.
      report: called with a line of text at each stage.
      workers: number of processes; None is one per core if the text is long enough, otherwise one.

    Raises:
      ValueError: no sentence of a split is left.
    """
    if workers is None:
        workers = usable_cores() if sources.text_bytes(config) >= _PAYS_FROM else 1
    layout = sources.resolve_layout(config)
    splits = [split for split in SPLITS if split == "train" or sources.has_split(config, split)]
    counts, dropped = {}, {}
    for split in splits:
        text = _text_file(folder, split)
        counts[split], dropped[split] = _write_text(config, split, layout, text, workers)
        report(f"{split}: {counts[split]:,} sentences after cleaning")
        if lost := dropped[split].of_characters():
            report(f"{split}: {lost}")
    if not counts["train"]:
        raise _nothing_left(config, "train", 0)
    tokenizer = _train_tokenizer(config, _text_file(folder, "train"), counts["train"], report)
    tokenizer.save(folder / TOKENIZER)
    report(f"vocabulary: {tokenizer.vocab_size:,} pieces")
    lengths = {}
    for split in splits:
        lengths[split], refused = _write_split(config, split, tokenizer, folder, workers)
        dropped[split] += refused
        if not len(lengths[split]):
            raise _nothing_left(config, split, counts[split])
        report(f"{split}: {len(lengths[split]):,} sentences, {lengths[split].sum():,} tokens")
        if lost := dropped[split].of_sentences(config.clean.min_tokens, config.clean.max_tokens):
            report(f"{split}: {lost}")
        _text_file(folder, split).unlink()
    metadata = {
        "format_version": FORMAT_VERSION,
        "hash": digest,
        "layout": layout,
        "config": described(config),
        "dtype": dtype_of(tokenizer.vocab_size),
        "vocab_size": tokenizer.vocab_size,
        "splits": {split: _split_metadata(lengths[split], dropped[split]) for split in splits},
        "files": {file.name: _file_metadata(file) for file in sorted(folder.iterdir())},
    }
    encoded = json.dumps(sealed(metadata), indent=1)
    (folder / METADATA).write_text(encoded, encoding="utf-8")


def described(config: DataConfig) -> dict[str, Any]:
    """The config's fields that determine the data, as JSON values."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in OF_BATCHES}
    return json.loads(json.dumps(values))


# ---- cleaning


def _text_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.txt"


def _write_text(
    config: DataConfig, split: Split, layout: Layout, file: Path, workers: int
) -> tuple[int, Dropped]:
    """Write clean sentences to a file, one per line; return how many and what was dropped."""
    documents = sources.read_sentences(config, split)
    count, dropped = 0, Dropped()
    with file.open("wb") as stream:
        if config.source == "grammar":
            for count, sentence in enumerate(documents, start=1):  # noqa: B007
                stream.write(f"{sentence}\n".encode())
            return count, Dropped(sentences=count)
        clean = functools.partial(_clean_block, config.clean, layout)
        for text, found, lost in ordered_map(clean, _blocks(documents), workers=workers):
            stream.write(text)
            count += found
            dropped += lost
    return count, dropped


def _blocks(documents: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document) + 1
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _clean_block(
    config: CleanConfig, layout: Layout, documents: list[str]
) -> tuple[bytes, int, Dropped]:
    """(lines of clean sentences, how many, what was dropped)."""
    sentences, dropped = _cleaner(config, layout).sentences(documents)
    return "\n".join([*sentences, ""]).encode(), len(sentences), dropped


@functools.lru_cache(maxsize=1)
def _cleaner(config: CleanConfig, layout: Layout) -> Cleaner:
    return Cleaner(config, layout)


# ---- tokenizer


def _train_tokenizer(config: DataConfig, file: Path, count: int, report: Progress) -> Tokenizer:
    """Trains on at most `tokenizer_sentences`, spread evenly over the file."""
    of_bytes = count * _SAMPLED_BYTES // file.stat().st_size
    cap = min(config.tokenizer_sentences, max(of_bytes, 1))
    sample: Iterable[str] = (
        line[:_SAMPLED_OF_SENTENCE]
        for i, line in enumerate(_lines(file))
        if (i + 1) * cap // count > i * cap // count
    )
    pieces = config.pieces
    if config.source == "grammar":
        # All words of the grammar are added, because a small corpus may lack a word that a held-out
        # sentence has.
        sample = itertools.chain(sample, sorted(default_grammar().words))
        pieces = "words" if pieces == "auto" else pieces
    how = "subwords" if pieces == "auto" else pieces
    return Tokenizer.train(sample, config.vocab_size, pieces=how, report=report)


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line.removesuffix("\n")


# ---- encoding


def _write_split(
    config: DataConfig, split: Split, tokenizer: Tokenizer, folder: Path, workers: int
) -> tuple[np.ndarray, Dropped]:
    """Encode a split; return the lengths of the kept sentences, [n] int32, and what was dropped."""
    from nvib_jax.progress import track

    text = _text_file(folder, split)
    encode = functools.partial(encode_block, tokenizer.to_bytes(), config.limits)
    total = -(-text.stat().st_size // _BLOCK)
    blocks = ordered_map(encode, _text_blocks(text), workers=workers)
    lengths, dropped = io.BytesIO(), Dropped()
    writer = TokenWriter(folder / token_file_name(split), dtype_of(tokenizer.vocab_size))
    try:
        for ids, found, refused in track(blocks, f"tokens of {split}", total=total, unit="MB"):
            writer.write(ids)
            lengths.write(found.tobytes())
            dropped += refused
    finally:
        checksums = writer.close()
    result = np.frombuffer(lengths.getvalue(), np.int32)
    np.save(folder / lengths_name(split), result)
    np.save(folder / checksums_name(split), checksums)
    return result, dropped


def _text_blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while lines := stream.readlines(_BLOCK):
            yield b"".join(lines)


def encode_block(
    model: bytes, limits: Limits, block: bytes
) -> tuple[np.ndarray, np.ndarray, Dropped]:
    """Encode the sentences of a block and keep those whose number of tokens is within the limits.

    Args:
      model: a serialised tokenizer.
      limits: fewest and most tokens of a sentence; None for no limits.
      block: UTF-8 text, one sentence per line.

    Returns:
      `[tokens]` int32 ids end to end, `[n]` int32 lengths, and what was dropped.
    """
    sentences = block.decode().split("\n")[:-1]
    ids, lengths = _tokenizer(model).encode_flat(sentences)
    low, high = limits or (1, len(ids))
    kept = (lengths >= max(low, 1)) & (lengths <= high)
    dropped = Dropped()
    for place in np.flatnonzero(~kept).tolist():
        dropped.refuse(sentences[place], short=bool(lengths[place] < low))
    if not kept.all():
        ids = ids[np.repeat(kept, lengths)]
    return ids, lengths[kept], dropped


@functools.lru_cache(maxsize=1)
def _tokenizer(model: bytes) -> Tokenizer:
    return Tokenizer(model)


# ---- metadata


def _split_metadata(lengths: np.ndarray, dropped: Dropped) -> dict[str, Any]:
    return {
        "sentences": len(lengths),
        "tokens": int(lengths.sum()),
        "sentences_of_length": np.bincount(lengths).tolist(),
        "dropped": dropped.to_json(),
    }


def _file_metadata(file: Path) -> dict[str, Any]:
    """A file's size, and its hash unless it holds ids, which have checksums of their own."""
    found: dict[str, Any] = {"bytes": file.stat().st_size}
    if file.suffix != ".tokens":
        found["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _nothing_left(config: DataConfig, split: Split, count: int) -> ValueError:
    clean = config.clean
    kept = f"the characters {clean.keep_characters!r}" if clean.keep_characters else "them"
    return ValueError(
        f"no sentence of data.{split} is left after cleaning: {count} sentences came out of "
        f"{config.source!r}, none with {clean.min_tokens} to {clean.max_tokens} tokens in {kept}; "
        "see data.clean and data.layout"
    )
