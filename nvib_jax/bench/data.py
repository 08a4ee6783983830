"""Benchmarks of reading batches: valid tokens per second, with and without prefetching.

The corpora are random ids with the lengths of clean sentences, in the format of `nvib prepare`,
because the content of a sentence does not affect the speed of reading it.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from nvib_jax.bench.timing import Case, Program
from nvib_jax.data import Batches, PreparedData, Tokenizer
from nvib_jax.data.prepared import (
    FORMAT_VERSION,
    METADATA,
    TOKENIZER,
    checksums_name,
    lengths_name,
    sealed,
    token_file_name,
)
from nvib_jax.data.token_file import TokenWriter

Implementation = Literal["indexed", "iterated"]
_SHORTEST, _LONGEST = 6, 49
_WRITTEN_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Data:
    """Reading batches of shuffled sentences."""

    implementation: tuple[Implementation, ...] = get_args(Implementation)
    """indexed: `batches[step]`; iterated: `batches.iterate()`, made ahead by threads."""
    tokens: tuple[int, ...] = (500_000, 5_000_000, 50_000_000)
    """Sizes of the corpora; 50 million are 300 MB of WikiText."""
    batch_size: tuple[int, ...] = (64, 512, 4096)
    """Sentences in a batch."""
    vocab_size: int = 4000
    """V."""
    seed: int = 0
    """Seed of the corpora and of their order."""

    def groups(self) -> Iterator[list[Case]]:
        """A group for each corpus and size of batch."""
        for tokens in self.tokens:
            with tempfile.TemporaryDirectory() as folder:
                data = corpus(Path(folder), tokens, self.vocab_size, self.seed)
                for size in self.batch_size:
                    yield [self._case(name, data, size) for name in self.implementation]

    def _case(self, name: str, data: PreparedData, size: int) -> Case:
        batches = Batches(data, "train", batch_size=size, seed=self.seed)
        tokens = int(data.lengths["train"].sum())

        def prepare() -> Program:
            start = time.perf_counter()
            call = reader(name, batches)
            # The file's pages are read into memory first, as they are from the second epoch on.
            for _ in range(len(batches) // 8 + 1):
                call()
            return Program(call, (), time.perf_counter() - start, None)

        return Case(
            implementation=name,
            labels={"corpus": f"{tokens / 1e6:.3g} M tokens", "batch": str(size)},
            prepare=prepare,
            amount=tokens / len(batches),
            unit="tokens",
        )


def reader(name: str, batches: Batches) -> Callable[[], Any]:
    """A function that returns the next batch."""
    if name == "iterated":
        iterator = batches.iterate()
        return lambda: next(iterator)
    steps = iter(range(1 << 62))
    return lambda: batches[next(steps)]


def corpus(folder: Path, tokens: int, vocab_size: int, seed: int) -> PreparedData:
    """Write about this many random ids as prepared data in a folder, and open them."""
    rng = np.random.default_rng(seed)
    count = max(tokens // ((_SHORTEST + _LONGEST) // 2), 1)
    lengths = rng.integers(_SHORTEST, _LONGEST + 1, count).astype(np.int32)
    writer = TokenWriter(folder / token_file_name("train"), "<u2")
    left = int(lengths.sum())
    while left:
        block = min(left, _WRITTEN_AT_ONCE)
        writer.write(rng.integers(4, vocab_size, block))
        left -= block
    np.save(folder / checksums_name("train"), writer.close())
    np.save(folder / lengths_name("train"), lengths)
    Tokenizer.train(["a b c"], 50, pieces="words").save(folder / TOKENIZER)
    files = {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.iterdir()
    }
    metadata = {
        "format_version": FORMAT_VERSION,
        "hash": "0" * 16,
        "dtype": "<u2",
        "splits": {"train": {}},
        "files": files,
    }
    (folder / METADATA).write_text(json.dumps(sealed(metadata)), encoding="utf-8")
    return PreparedData.load(folder)
