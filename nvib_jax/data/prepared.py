"""A finished cache of token ids, opened for reading: sentences by index, lengths, the tokenizer.

It guarantees that a bit flipped on disk is detected before damaged data are returned. The metadata
hold checksums of themselves and of every small file, which are checked when the cache is opened.
So are the ids, if they have at most 256 MiB in all. In larger caches each chunk of ids is checked
when it is first read (`token_file.py`); a cache that proves damaged then is marked, so that it is
prepared again the next time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvib_jax.data.config import Split
from nvib_jax.data.token_file import DamagedTokens, TokenFile
from nvib_jax.data.tokenizer import Tokenizer

# It is part of the cache's name. Raise it when the same configuration would give different files,
# for example after a change of the cleaning or of the tokenizer's training.
FORMAT_VERSION = 2
METADATA = "metadata.json"
TOKENIZER = "tokenizer.model"
DAMAGED = "damaged.txt"
_CHECKED_AT_ONCE = 256 << 20  # up to this many bytes all ids are checked at once, in under a second


def token_file_name(split: str) -> str:
    """The file of a split's ids."""
    return f"{split}.tokens"


def lengths_name(split: str) -> str:
    """The file of a split's lengths, `[n]` int32."""
    return f"{split}.lengths.npy"


def checksums_name(split: str) -> str:
    """The file of the checksums of a split's ids, `[chunks]` uint32."""
    return f"{split}.checksums.npy"


@dataclass(frozen=True, eq=False)
class PreparedData:
    """A prepared corpus on disk.

    Attributes:
      path: the cache's folder.
      tokenizer: the tokenizer that made the ids.
      vocab_size: number of ids, special ones included.
      lengths: split to `[n]` int32, tokens of each sentence without beginning or end.
      metadata: the content of `metadata.json`: counts, source, cleaning, what was dropped, hash.

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
    _files: Mapping[str, TokenFile]

    @classmethod
    def load(cls, path: str | Path) -> PreparedData:
        """Open a cache that `prepare` finished.

        Raises:
          FileNotFoundError: there is no cache at this path.
          ValueError: the cache has another format version or is damaged.
        """
        path = Path(path)
        metadata = read_metadata(path)
        if (path / DAMAGED).exists():
            raise _damaged(path, (path / DAMAGED).read_text(encoding="utf-8", errors="replace"))
        tokenizer = Tokenizer.from_bytes(_whole_file(path, TOKENIZER, metadata))
        lengths = {s: _array(path, lengths_name(s), metadata) for s in metadata["splits"]}
        files = {split: _token_file(path, split, metadata, lengths[split]) for split in lengths}
        if sum(file.nbytes for file in files.values()) <= _CHECKED_AT_ONCE:
            for file in files.values():
                with _as_damage(path):
                    file.check()
        return cls(path, tokenizer, tokenizer.vocab_size, lengths, metadata, files)

    @property
    def held_out(self) -> Split:
        """The split that training evaluates on: validation if there is one, otherwise train."""
        return "validation" if "validation" in self.lengths else "train"

    @property
    def digest(self) -> str:
        """The hash of the text, its cleaning and the format, which names these data."""
        return self.metadata["hash"]

    def split_lengths(self, split: str) -> np.ndarray:
        """`[n]` int32 lengths of a split; ValueError for an unknown split names the known ones."""
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
        """A hash (31 bits) of the tokenizer and all lengths, to compare between processes."""
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
          ValueError: the ids are damaged on disk.
        """
        size = len(self.split_lengths(split))
        keys = np.asarray(indices, np.int64).reshape(-1)
        if len(outside := keys[(keys < 0) | (keys >= size)]):
            raise IndexError(f"split {split!r} has sentences 0 to {size - 1}, got {outside[0]}")
        with _as_damage(self.path, mark=True):
            return self._files[split].rows(keys)

    def padded(self, split: str, indices: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Sentences as the rows of a matrix, padded with `Tokenizer.special.pad`.

        Args:
          split: the split.
          indices: `[B]` sentences of it; a negative one gives an empty row.
          width: columns, at least the longest of these sentences.

        Returns:
          `[B, width]` int32 ids and `[B, width]` bool, True on ids.

        Raises:
          ValueError: the ids are damaged on disk.
        """
        with _as_damage(self.path, mark=True):
            return self._files[split].padded(indices, width, Tokenizer.special.pad)

    def sentences(self, split: str, count: int | None = None) -> list[str]:
        """The texts of the first `count` sentences, as cleaned (all of them for None)."""
        size = len(self.split_lengths(split))
        indices = np.arange(size if count is None else min(count, size))
        return [self.tokenizer.decode(ids) for ids in self.tokens(split, indices)]


# ---- checked reading


def sealed(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with their own checksum added."""
    return metadata | {"checksum": _checksum_of(metadata)}


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a cache.

    Raises:
      FileNotFoundError: no cache at this path.
      ValueError: metadata of another format version, or damaged ones.
    """
    file = path / METADATA
    if not file.is_file():
        raise FileNotFoundError(f"no prepared data at {path}: it has no {METADATA}")
    try:
        metadata = json.loads(file.read_bytes().decode("utf-8"))
        checksum = metadata.pop("checksum", None) if isinstance(metadata, dict) else None
        found = _checksum_of(metadata)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"{METADATA} is not JSON") from error
    if not isinstance(metadata, dict):
        raise _damaged(path, f"{METADATA} is no JSON object")
    version = metadata.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, expected {FORMAT_VERSION}: prepare the data "
            "again"
        )
    if checksum != found:
        raise _damaged(path, f"{METADATA} is not what was written")
    return metadata


def _checksum_of(metadata: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"the cache {path} is damaged: {what.strip()}; prepare the data again")


@contextlib.contextmanager
def _as_damage(path: Path, *, mark: bool = False) -> Any:
    """Turn damaged ids into an error that names the cache; `mark` also marks it as damaged."""
    try:
        yield
    except DamagedTokens as error:
        if mark:
            with contextlib.suppress(OSError):  # the cache may be read-only
                (path / DAMAGED).write_text(f"{error}\n", encoding="utf-8")
        raise _damaged(path, str(error)) from error


def _found_size(path: Path, name: str, metadata: dict[str, Any]) -> None:
    wanted = metadata["files"][name]["bytes"]
    found = (path / name).stat().st_size if (path / name).is_file() else None
    if found != wanted:
        state = "is missing" if found is None else f"has {found} bytes"
        raise _damaged(path, f"{name} {state}, expected {wanted} bytes")


def _whole_file(path: Path, name: str, metadata: dict[str, Any]) -> bytes:
    """The content of a small file, after comparing it with its checksum."""
    _found_size(path, name, metadata)
    content = (path / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != metadata["files"][name]["sha256"]:
        raise _damaged(path, f"{name} is not what was written")
    return content


def _array(path: Path, name: str, metadata: dict[str, Any]) -> np.ndarray:
    return np.load(io.BytesIO(_whole_file(path, name, metadata)), allow_pickle=False)


def _token_file(path: Path, split: str, metadata: dict[str, Any], lengths: np.ndarray) -> TokenFile:
    name = token_file_name(split)
    _found_size(path, name, metadata)
    checksums = _array(path, checksums_name(split), metadata)
    with _as_damage(path):
        return TokenFile(path / name, metadata["dtype"], lengths, checksums)
