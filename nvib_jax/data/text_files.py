"""The files of a `text` source as lines; a file is on the local disk or behind a URL.

A URL (`gs://bucket/corpus/*.txt`) is read through fsspec, which is installed with Orbax and TFDS;
`gs://` also needs the package gcsfs.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nvib_jax.data.config import DataConfig, Split

_LONGEST_LINE = 1 << 24  # bytes; a longer line is read in pieces
_BLOCK = 1 << 20


@dataclass(frozen=True)
class TextFile:
    """A file by its path or URL."""

    name: str

    def open(self) -> IO[bytes]:
        """Open the file for reading bytes."""
        if "://" not in self.name:
            return open(self.name, "rb")
        system, path = _file_system(self.name)
        return system.open(path, "rb")

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        if "://" not in self.name:
            return Path(self.name).stat().st_size
        system, path = _file_system(self.name)
        return int(system.size(path))

    def sha256(self) -> str:
        """The hash of the content, as hexadecimal digits."""
        found = hashlib.sha256()
        with self.open() as stream:
            while block := stream.read(_BLOCK):
                found.update(block)
        return found.hexdigest()


def split_files(config: DataConfig, split: Split) -> list[TextFile]:
    """The files of a split of a `text` source, each once; those of a glob are sorted.

    A folder stands for the files `*.txt` in it.

    Raises:
      FileNotFoundError: a path or glob matches no file, or a folder has no `*.txt`.
      ValueError: no files are named for `train`, a file is empty, or a URL of an unknown kind.
    """
    patterns: tuple[str, ...] = getattr(config, split)
    if not patterns:
        raise ValueError(f"data.source='text' needs files in data.{split}, got none")
    files: dict[str, None] = {}
    for pattern in patterns:
        found = _matches(pattern)
        if not found and _is_folder(pattern):
            inside = f"{pattern.rstrip('/')}/*.txt"
            found = _matches(inside)
            if not found:
                raise FileNotFoundError(
                    f"data.{split} names a folder without *.txt: {pattern!r}; wanted files, as in "
                    f"'{pattern.rstrip('/')}/*'"
                )
        if not found:
            raise FileNotFoundError(f"data.{split} names no file: {pattern!r} matches nothing")
        files.update(dict.fromkeys(found))
    for name in files:
        if not TextFile(name).size:
            raise ValueError(f"data.{split}: {name} is empty, expected UTF-8 text")
    return [TextFile(name) for name in files]


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url!r} cannot be read: {error}") from error


def _matches(pattern: str) -> list[str]:
    if "://" in pattern:
        system, path = _file_system(pattern)
        if system.isfile(path):
            return [pattern]
        if "*" not in path and "?" not in path and "[" not in path:
            return []
        found = sorted(system.glob(path))
        return [system.unstrip_protocol(name) for name in found if system.isfile(name)]
    expanded = str(Path(pattern).expanduser())
    if Path(expanded).is_file():
        return [expanded]
    return [path for path in sorted(glob.glob(expanded, recursive=True)) if Path(path).is_file()]


def _is_folder(pattern: str) -> bool:
    if "://" in pattern:
        system, path = _file_system(pattern)
        return bool(system.isdir(path))
    return Path(pattern).expanduser().is_dir()


def lines_of(files: Iterable[TextFile]) -> Iterator[str]:
    """Lines of UTF-8 files; a byte order mark is dropped.

    A line beyond 16 MiB comes in pieces that end at spaces, so that memory is bounded.

    Raises:
      ValueError: bytes that are not UTF-8, with their place.
    """
    for file in files:
        offset, number = 0, 1
        with file.open() as stream:
            for block in line_blocks(stream):
                try:
                    text = block.decode("utf-8")
                except UnicodeDecodeError as error:
                    wrong = error.start
                    number += block.count(b"\n", 0, wrong)
                    raise ValueError(
                        f"{file.name} is not UTF-8: byte 0x{block[wrong]:02x} at offset "
                        f"{offset + wrong} (line {number}); convert it to UTF-8 first"
                    ) from error
                offset += len(block)
                number += block.count(b"\n")
                lines = text.removesuffix("\n").split("\n")
                if "\r" in text or "\ufeff" in text:
                    lines = [line.rstrip("\r").removeprefix("\ufeff") for line in lines]
                yield from lines


def line_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of a file in blocks of at most a megabyte or a line, which end where a line does.

    A line beyond 16 MiB comes in several blocks, which end at spaces.
    """
    rest = b""
    while read := stream.read(min(_BLOCK, _LONGEST_LINE - len(rest))):
        rest += read
        end = rest.rfind(b"\n") + 1
        if not end and len(rest) == _LONGEST_LINE:
            end = _cut(rest)
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _cut(raw: bytes) -> int:
    """Where to cut a long line: after the last space of its second half, otherwise before its last
    character.
    """
    space = raw.rfind(b" ", len(raw) // 2) + 1
    if space:
        return space
    cut = len(raw) - 1
    while raw[cut] & 0xC0 == 0x80 and len(raw) - cut < 4:  # not the first byte of a character
        cut -= 1
    return cut
