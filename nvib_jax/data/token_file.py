"""The token ids of a split, end to end in one flat file that is mapped into memory.

    <split>.tokens        little-endian uint16 (int32 for a vocabulary above 65,536), no header
    <split>.checksums.npy [chunks] uint32, the CRC-32 of every 256 KiB of it

Sentence i begins where the sentences before it end, so the lengths are enough to find it. Each
chunk is compared with its checksum when it is first read. So no batch contains an id from a damaged
chunk, and opening a file of gigabytes is still fast.
"""

from __future__ import annotations

import mmap
import threading
import zlib
from pathlib import Path

import numpy as np

CHUNK = 1 << 18  # bytes


class DamagedTokens(ValueError):
    """The ids on disk are not those that were written."""


def dtype_of(vocab_size: int) -> str:
    """The type of an id on disk."""
    return "<u2" if vocab_size <= 1 << 16 else "<i4"


class TokenWriter:
    """Appends ids to a file and keeps the checksums of its chunks.

    Args:
      file: written anew.
      dtype: of an id on disk, as `dtype_of` gives it.
    """

    def __init__(self, file: Path, dtype: str) -> None:
        self._stream = file.open("wb")
        self._dtype = dtype
        self._checksums: list[int] = []
        self._open = bytearray()  # the chunk that is not full yet

    def write(self, ids: np.ndarray) -> None:
        """Appends ids, `[n]` integers."""
        block = np.ascontiguousarray(ids, self._dtype).tobytes()
        self._stream.write(block)
        self._open += block
        while len(self._open) >= CHUNK:
            self._checksums.append(zlib.crc32(memoryview(self._open)[:CHUNK]))
            del self._open[:CHUNK]

    def close(self) -> np.ndarray:
        """Ends the file; returns the checksums, `[chunks]` uint32."""
        self._stream.close()
        if self._open:
            self._checksums.append(zlib.crc32(self._open))
            self._open.clear()
        return np.asarray(self._checksums, np.uint32)


class TokenFile:
    """A split's sentences by index.

    Args:
      file: what `TokenWriter` wrote; at least one id.
      dtype: of an id on disk.
      lengths: `[n]` tokens of each sentence, in order.
      checksums: what `TokenWriter.close` returned.

    Raises:
      DamagedTokens: the file is not as long as lengths and checksums say.
    """

    def __init__(self, file: Path, dtype: str, lengths: np.ndarray, checksums: np.ndarray) -> None:
        self.file, self.lengths = file, lengths
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        with file.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        size, wanted = len(self._bytes), int(self._starts[-1]) * np.dtype(dtype).itemsize
        if size != wanted or len(checksums) != -(-size // CHUNK):
            raise DamagedTokens(f"{file} has {size} bytes, expected {wanted}")
        self._flat = np.frombuffer(self._bytes, dtype)
        self._checksums = checksums
        self._unseen = np.ones(len(checksums), bool)
        self._left = len(checksums)
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._bytes)

    def check(self) -> None:
        """Compares the whole file with its checksums.

        Raises:
          DamagedTokens: a chunk that differs, named by its place.
        """
        self._check_chunks(np.arange(len(self._checksums)))

    def padded(self, indices: np.ndarray, width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
        """Sentences as the rows of a matrix.

        Args:
          indices: `[B]` sentences; a negative one gives an empty row.
          width: columns, at least the longest of these sentences.
          fill: the id after the end of a sentence.

        Returns:
          `[B, width]` int32 ids and `[B, width]` bool, True on ids.
        """
        known = np.maximum(indices, 0)
        starts = self._starts[known]
        lengths = np.where(indices < 0, 0, self.lengths[known])
        if self._left:
            self._check_range(starts, starts + lengths)
        columns = np.arange(width)
        mask = columns < lengths[:, None]
        # After a sentence's end this takes ids of the next sentences, or clips at the end of the
        # file; the mask replaces them below.
        found = self._flat.take(starts[:, None] + columns, mode="clip")
        return np.where(mask, found, fill).astype(np.int32, copy=False), mask

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        """Sentences, each `[length]` int32."""
        starts, ends = self._starts[indices], self._starts[indices + 1]
        if self._left:
            self._check_range(starts, ends)
        spans = zip(starts.tolist(), ends.tolist(), strict=True)
        return [self._flat[start:end].astype(np.int32) for start, end in spans]

    def _check_range(self, starts: np.ndarray, ends: np.ndarray) -> None:
        size = self._flat.itemsize
        first = starts * size // CHUNK
        last = np.maximum(ends * size - 1, starts * size) // CHUNK
        # Chunks between the first and the last are included, because a sentence may span several.
        steps = range(int((last - first).max(initial=0)) + 1)
        chunks = np.unique(np.concatenate([np.minimum(first + step, last) for step in steps]))
        self._check_chunks(np.minimum(chunks, len(self._checksums) - 1))

    def _check_chunks(self, chunks: np.ndarray) -> None:
        view = memoryview(self._bytes)
        for chunk in chunks[self._unseen[chunks]].tolist():
            start = chunk * CHUNK
            if zlib.crc32(view[start : start + CHUNK]) != self._checksums[chunk]:
                raise DamagedTokens(
                    f"bytes {start} to {start + CHUNK} of {self.file.name} are not what was written"
                )
            with self._lock:
                self._left -= int(self._unseen[chunk])
                self._unseen[chunk] = False
