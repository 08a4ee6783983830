"""A finished cache of token ids, opened for reading: sentences by index, lengths, the tokenizer."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data.tokenizer import Tokenizer

# Part of the hash: raise it when the same configuration would give other files, say by a change
# of the cleaning or of the tokenizer's training.
FORMAT_VERSION = 1
METADATA = "metadata.json"
TOKENIZER = "tokenizer.model"
RECORD_SUFFIX = ".array_record"


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A prepared corpus on disk.

    Attributes:
      path: the cache's folder.
      tokenizer: the tokenizer that made the ids.
      vocab_size: number of ids, special ones included.
      lengths: split to `[n]` int32, tokens of each sentence without beginning or end.
      metadata: what `metadata.json` says: counts, source, cleaning, configuration, hash.

    >>> config = DataConfig(num_train=200, num_validation=20, num_test=0, cache_dir="cache")
    >>> data = PreparedData.load(prepare(config).path)
    >>> len(data.sentences("validation", 3))
    3
    """

    path: Path
    tokenizer: Tokenizer
    vocab_size: int
    lengths: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> PreparedData:
        """Opens a cache that `prepare` finished.

        Raises:
          FileNotFoundError: no cache at this path.
          ValueError: a cache of another format version, or one with files missing or cut short.
        """
        path = Path(path)
        metadata = _checked_metadata(path)
        lengths = {split: np.load(path / f"lengths_{split}.npy") for split in metadata["splits"]}
        tokenizer = Tokenizer.load(path / TOKENIZER)
        return cls(path, tokenizer, tokenizer.vocab_size, lengths, metadata)

    def split_lengths(self, split: str) -> np.ndarray:
        """`[n]` int32 lengths of a split; ValueError names the splits there are."""
        if split not in self.lengths:
            raise ValueError(
                f"the prepared data have no split {split!r}, only {sorted(self.lengths)}; "
                f"name its source in data.{split}"
            )
        return self.lengths[split]

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens of the longest sentence of any split."""
        return max(int(lengths.max()) for lengths in self.lengths.values())

    @functools.cached_property
    def fingerprint(self) -> int:
        """31 bits of the tokenizer and of all lengths: what several processes compare."""
        found = zlib.crc32(self.tokenizer.to_bytes())
        for split in sorted(self.lengths):
            found = zlib.crc32(self.lengths[split].tobytes(), found)
        return found >> 1

    @functools.cached_property
    def length_distribution(self) -> np.ndarray:
        """`[max_tokens + 1]` float64: share of each length, in tokens, among training sentences."""
        lengths = self.lengths["train"]
        return np.bincount(lengths, minlength=self.max_tokens + 1) / len(lengths)

    def tokens(self, split: str, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Sentences by index, each `[length]` int32.

        Raises:
          IndexError: an index outside the split.
        """
        size = len(self.split_lengths(split))
        keys = [int(i) for i in indices]
        if outside := [i for i in keys if not 0 <= i < size]:
            raise IndexError(f"split {split!r} has sentences 0 to {size - 1}, got {outside[0]}")
        records = self._records(split).__getitems__(keys) if keys else []
        return [np.frombuffer(record, self._dtype).astype(np.int32) for record in records]

    def sentences(self, split: str, count: int | None = None) -> list[str]:
        """The texts of the first `count` sentences, as cleaned (all of them for None)."""
        size = len(self.split_lengths(split))
        indices = range(size if count is None else min(count, size))
        return [self.tokenizer.decode(ids) for ids in self.tokens(split, indices)]

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self.metadata["dtype"])

    @functools.cached_property
    def _sources(self) -> dict[str, Any]:
        return {}

    def _records(self, split: str) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        if split not in self._sources:
            shards = sorted(self.path.glob(f"{split}-*{RECORD_SUFFIX}"))
            self._sources[split] = ArrayRecordDataSource([str(shard) for shard in shards])
        return self._sources[split]


def _checked_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a cache, after a look at every file that it lists."""
    file = path / METADATA
    if not file.is_file():
        raise FileNotFoundError(f"no prepared data at {path}: it has no {METADATA}")
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON, the cache is damaged: delete {path}") from error
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {metadata.get('format_version')}, expected "
            f"{FORMAT_VERSION}: prepare the data again"
        )
    for name, size in metadata["files"].items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ValueError(
                f"the cache {path} is damaged: {name} {state}, expected {size} bytes; delete it "
                "and prepare the data again"
            )
    return metadata
