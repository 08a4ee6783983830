"""Text to a cache of token ids: source, clean, train the tokenizer, encode, write shards.

The cache is a folder named by a hash of the configuration that matters, of the text itself and of
the format:

    metadata.json  tokenizer.model  lengths_<split>.npy  <split>-00000-of-00001.array_record ...

A record is one sentence: its ids without beginning or end, little-endian uint16 (int32 for a
vocabulary beyond 65,536). The folder is built beside its place under another name and moved there
whole, so that a folder with that name is complete, whatever interrupts or runs beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data import sources
from nvib_jax.data.cache_folder import (
    building_name,
    discard,
    move_into_place,
    remove_abandoned,
)
from nvib_jax.data.clean import clean_sentences
from nvib_jax.data.config import SPLITS, DataConfig, Split
from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.prepared import (
    FORMAT_VERSION,
    METADATA,
    RECORD_SUFFIX,
    TOKENIZER,
    PreparedData,
)
from nvib_jax.data.tokenizer import Tokenizer

_SENTENCES_PER_SHARD = 250_000
_ENCODED_AT_ONCE = 10_000

Progress = Callable[[str], None]


def prepare(config: DataConfig, *, progress: Progress | None = None) -> PreparedData:
    """Prepares a corpus, or opens the cache of it where there is one.

    Args:
      config: what to read and how to clean it. Fields of batching have no part in the cache.
      progress: called with a line of text at each stage.

    Raises:
      FileNotFoundError: a source that is not there.
      ValueError: a source that cannot be read, or of which no sentence is left after cleaning.

    >>> data = prepare(DataConfig(num_train=200, num_validation=20, num_test=0, cache_dir="cache"))
    >>> {split: len(lengths) for split, lengths in data.lengths.items()}
    {'train': 200, 'validation': 20}
    """
    report = progress or (lambda line: None)
    digest = cache_hash(config)
    root = Path(config.cache_dir).expanduser()
    final = root / digest
    if final.is_dir():
        try:
            return PreparedData.load(final)
        except (FileNotFoundError, ValueError) as error:
            report(f"{error}; preparing it again")
            discard(final)
    root.mkdir(parents=True, exist_ok=True)
    remove_abandoned(root)
    building = root / building_name(digest)
    building.mkdir()
    try:
        _build(config, digest, building, report)
        move_into_place(building, final)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    report(f"prepared {final}")
    return PreparedData.load(final)


def cache_hash(config: DataConfig) -> str:
    """Hash of everything that the prepared data depend on: 16 hexadecimal digits."""
    relevant: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "source": config.source,
        "vocab_size": config.vocab_size,
        "tokenizer_sentences": config.tokenizer_sentences,
        "text": sources.fingerprint(config),
    }
    if config.source != "grammar":
        relevant |= {
            "layout": config.layout,
            "text_feature": config.text_feature,
            "clean": dataclasses.asdict(config.clean),
        }
    encoded = json.dumps(relevant, sort_keys=True).encode()
    return hashlib.sha256(encoded).hexdigest()[:16]


# ---- stages


def _build(config: DataConfig, digest: str, folder: Path, report: Progress) -> None:
    """Writes a whole cache into `folder`, the metadata last."""
    splits = [split for split in SPLITS if split == "train" or sources.has_split(config, split)]
    counts = {}
    for split in splits:
        counts[split] = _write_text(_sentences(config, split), _text_file(folder, split))
        report(f"{split}: {counts[split]:,} sentences after cleaning")
    if not counts["train"]:
        raise _nothing_left(config, "train", 0)
    tokenizer = _train_tokenizer(config, _text_file(folder, "train"), counts["train"])
    tokenizer.save(folder / TOKENIZER)
    report(f"vocabulary: {tokenizer.vocab_size:,} pieces")
    lengths = {}
    for split in splits:
        lengths[split] = _write_split(config, split, counts[split], tokenizer, folder)
        report(f"{split}: {len(lengths[split]):,} sentences, {lengths[split].sum():,} tokens")
        _text_file(folder, split).unlink()
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    metadata = _metadata(config, digest, tokenizer, lengths) | {"files": files}
    (folder / METADATA).write_text(json.dumps(metadata, indent=1), encoding="utf-8")


def _sentences(config: DataConfig, split: Split) -> Iterable[str]:
    documents = sources.read_sentences(config, split)
    if config.source == "grammar":
        return documents
    return clean_sentences(documents, config.clean, sources.resolve_layout(config))


def _text_file(folder: Path, split: str) -> Path:
    return folder / f"{split}.txt"


def _write_text(sentences: Iterable[str], file: Path) -> int:
    """Sentences to a file, one a line, so that a corpus need not fit in memory; their number."""
    count = 0
    with file.open("w", encoding="utf-8", newline="\n") as stream:
        for sentence in sentences:
            count += 1
            stream.write(" ".join(sentence.split()) + "\n")
    return count


def _read_text(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            yield line.removesuffix("\n")


def _train_tokenizer(config: DataConfig, file: Path, count: int) -> Tokenizer:
    """Trains on at most `tokenizer_sentences`, spread evenly over the file."""
    cap = config.tokenizer_sentences
    sample = (
        s for i, s in enumerate(_read_text(file)) if (i + 1) * cap // count > i * cap // count
    )
    if config.source == "grammar":
        # A small corpus may lack a word of the grammar that a held-out sentence has.
        words = sorted(default_grammar().words)
        return Tokenizer.train([*sample, *words], config.vocab_size, whole_words=True)
    return Tokenizer.train(sample, config.vocab_size)


def _write_split(
    config: DataConfig, split: Split, count: int, tokenizer: Tokenizer, folder: Path
) -> np.ndarray:
    """Encodes a split into shards and returns the lengths of what is kept, `[n]` int32."""
    low, high = config.clean.min_tokens, config.clean.max_tokens
    everything = config.source == "grammar"
    encoded = (
        ids
        for ids in _encoded(_read_text(_text_file(folder, split)), tokenizer, split, count)
        if ids and (everything or low <= len(ids) <= high)
    )
    dtype = np.dtype(_dtype(tokenizer))
    lengths: list[int] = []
    shards: list[Path] = []
    for shard in _chunks(encoded, _SENTENCES_PER_SHARD):
        shards.append(folder / f"{split}-{len(shards):05d}{RECORD_SUFFIX}")
        _write_shard(shards[-1], (np.asarray(ids, dtype).tobytes() for ids in shard))
        lengths.extend(len(ids) for ids in shard)
    if not lengths:
        raise _nothing_left(config, split, count)
    for i, shard_file in enumerate(shards):
        shard_file.rename(folder / f"{split}-{i:05d}-of-{len(shards):05d}{RECORD_SUFFIX}")
    result = np.asarray(lengths, np.int32)
    np.save(folder / f"lengths_{split}.npy", result)
    return result


def _encoded(
    sentences: Iterator[str], tokenizer: Tokenizer, split: Split, count: int
) -> Iterator[list[int]]:
    from nvib_jax.progress import track

    chunks, total = _chunks(sentences, _ENCODED_AT_ONCE), -(-count // _ENCODED_AT_ONCE)
    for chunk in track(chunks, f"tokens of {split}", total=total, unit="batches"):
        yield from tokenizer.encode_batch(chunk)


def _write_shard(file: Path, records: Iterable[bytes]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    # Sentences are read one at a time in random order: groups of one, too short to compress.
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4"


def _metadata(
    config: DataConfig, digest: str, tokenizer: Tokenizer, lengths: dict[Split, np.ndarray]
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "hash": digest,
        "source": config.source,
        "layout": sources.resolve_layout(config),
        "clean": None if config.source == "grammar" else dataclasses.asdict(config.clean),
        "config": dataclasses.asdict(config),
        "dtype": _dtype(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "splits": {
            split: {
                "sentences": len(values),
                "tokens": int(values.sum()),
                "sentences_of_length": np.bincount(values).tolist(),
            }
            for split, values in lengths.items()
        },
    }


def _nothing_left(config: DataConfig, split: Split, count: int) -> ValueError:
    clean = config.clean
    return ValueError(
        f"no sentence of data.{split} is left after cleaning: {count} sentences came out of "
        f"{config.source!r}, none of {clean.min_tokens} to {clean.max_tokens} tokens in the "
        f"characters {clean.keep_characters!r}; see data.clean"
    )
