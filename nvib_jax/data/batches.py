"""Batches of token ids: a batch is a pure function of (seed, step), and a process reads its rows.

Sentences are grouped by length into buckets, each a static shape. An epoch is a permutation of the
split, cut into batches of one bucket each. Every sentence is in it exactly once, and the last batch
of a bucket is filled up with rows that are all padding. Nothing depends on what was read before, so
a resumed run needs only its step, and all processes agree on the global batch.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from nvib_jax.data.config import Split
from nvib_jax.data.prepared import PreparedData

_DEFAULT_BUCKETS = 4
_HANDED_OVER = 4096  # about as many sentences are handed from a prefetching thread at once
_NO_END = 1 << 40  # grain wants a number of steps; no run has this many


class Batch(TypedDict):
    """Rows of one bucket of length N.

    Keys:
      tokens: `[B, N]` int32, padded with `Tokenizer.special.pad`.
      mask: `[B, N]` bool, True on tokens.
      index: `[B]` int32, the sentence's place in its split; -1 for a row that is all padding.
    """

    tokens: np.ndarray
    mask: np.ndarray
    index: np.ndarray


@dataclass(frozen=True)
class _Plan:
    """An epoch: `rows[b]` are the sentences of batch b (-1 is padding), `lengths[b]` its bucket."""

    rows: np.ndarray
    lengths: np.ndarray


class Batches:
    """All batches of a split, addressed by step.

    Args:
      data: prepared data.
      split: `train`, `validation` or `test`.
      batch_size: sentences in a global batch.
      buckets: padded lengths in tokens, rising; empty chooses the four that pad least.
      seed: of the order of sentences and of batches.
      rows: which rows of the global batch are read, rising; None is all. Processes that share a
        batch each read their own.
      shuffle: False keeps the split's order within each bucket, short buckets first, every epoch.

    Raises:
      ValueError: an unknown or empty split, rows outside the batch, or sentences longer than the
        longest bucket.

    >>> data = prepare(DataConfig(num_train=200, num_validation=0, num_test=0, cache_dir="cache"))
    >>> batches = Batches(data, "train", batch_size=16, buckets=[24])
    >>> batches[7]["tokens"].shape  # step 7's, whatever came before
    (16, 24)
    """

    def __init__(
        self,
        data: PreparedData,
        split: Split,
        *,
        batch_size: int,
        buckets: Sequence[int] = (),
        seed: int = 0,
        rows: Sequence[int] | np.ndarray | None = None,
        shuffle: bool = True,
    ) -> None:
        lengths = data.split_lengths(split)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        if not len(self._rows) or not 0 <= self._rows.min() <= self._rows.max() < batch_size:
            raise ValueError(f"rows must be of [0, {batch_size}), got {self._rows.tolist()}")
        # All splits have the same buckets, so that no split adds shapes to compile.
        self.buckets = tuple(buckets) or default_buckets(data)
        check_buckets(self.buckets, int(lengths.max()), f"sentence of {split!r}")
        self.batch_size = batch_size
        self.seed = seed
        self._data, self._split, self._shuffle = data, split, shuffle
        bucket_of = np.searchsorted(self.buckets, lengths)
        self._members = [np.flatnonzero(bucket_of == b) for b in range(len(self.buckets))]
        self._plan_lock = threading.Lock()
        self._plans: dict[int, _Plan] = {}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return sum(-(-len(members) // self.batch_size) for members in self._members)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, 0 or more, shape (len(rows), N). Its epoch is step // len(self)."""
        plan, position = self._place(step)
        index = plan.rows[position, self._rows].astype(np.int32)
        tokens, mask = self._data.padded(self._split, index, int(plan.lengths[position]))
        return Batch(tokens=tokens, mask=mask, index=index)

    def sentences(self, step: int) -> list[int]:
        """Which sentences of the split are in the whole batch of a step, whatever the `rows`."""
        plan, position = self._place(step)
        return [int(i) for i in plan.rows[position] if i >= 0]

    def iterate(self, start_step: int = 0, *, prefetch: int = 4) -> Iterator[Batch]:
        """Endless batches from `start_step`, equal to `self[start_step]` and on.

        Args:
          start_step: the first step.
          prefetch: how far background threads work ahead, in groups of about 4,096 sentences; 0
            makes each batch when it is asked for.
        """
        if not prefetch:
            return map(self.__getitem__, itertools.count(start_step))
        import grain

        # Several batches are handed over at once, because handing a small one from thread to thread
        # takes longer than making it.
        together = max(1, _HANDED_OVER // self.batch_size)

        def several(group: int) -> list[Batch]:
            first = start_step + group * together
            return [self[step] for step in range(first, first + together)]

        groups = grain.MapDataset.range(_NO_END // together).map(several)
        options = grain.ReadOptions(num_threads=min(prefetch, 2), prefetch_buffer_size=prefetch)
        return itertools.chain.from_iterable(groups.to_iter_dataset(options))

    def _place(self, step: int) -> tuple[_Plan, int]:
        if step < 0:
            raise IndexError(f"step must be at least 0, got {step}")
        epoch, position = divmod(int(step), len(self))
        return self._plan(epoch), position

    def _plan(self, epoch: int) -> _Plan:
        # Two plans are kept, because at the end of an epoch some prefetching threads still need the
        # old plan and others already need the new one.
        with self._plan_lock:
            if epoch not in self._plans:
                while len(self._plans) > 1:
                    del self._plans[min(self._plans)]
                self._plans[epoch] = self._make_plan(epoch)
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> _Plan:
        seeds = np.random.SeedSequence([self.seed, epoch])
        rng = np.random.Generator(np.random.Philox(seeds))
        rows, lengths = [], []
        for bucket, members in zip(self.buckets, self._members, strict=True):
            order = rng.permutation(members) if self._shuffle else members
            count = -(-len(order) // self.batch_size)
            filled = np.full(count * self.batch_size, -1, np.int64)
            filled[: len(order)] = order
            rows.append(filled.reshape(count, self.batch_size))
            lengths.append(np.full(count, bucket))
        batches = rng.permutation(len(self)) if self._shuffle else np.arange(len(self))
        return _Plan(np.concatenate(rows)[batches], np.concatenate(lengths)[batches])


def check_buckets(buckets: Sequence[int], longest: int, what: str = "sentence") -> None:
    """Check that the longest sentence fits into a bucket.

    Raises:
      ValueError: it does not.
    """
    if longest > buckets[-1]:
        raise ValueError(
            f"the longest {what} has {longest} tokens, more than the longest bucket of "
            f"data.buckets, {tuple(buckets)}; wanted --data.buckets with one as long, none of them "
            "for buckets that follow the data, or a smaller --data.clean.max-tokens"
        )


def default_buckets(data: PreparedData) -> tuple[int, ...]:
    """Four buckets for the lengths of all splits together."""
    return choose_buckets(np.concatenate(list(data.lengths.values())), _DEFAULT_BUCKETS)


def choose_buckets(lengths: np.ndarray, count: int) -> tuple[int, ...]:
    """At most `count` padded lengths that minimise the padding of sentences of these lengths.

    The choice is exact, by dynamic programming over the lengths that occur: the cheapest way to
    cover the lengths up to `l` with `k` buckets ends with a bucket of length `l`. If several
    choices pad equally, the one with the fewest buckets is taken.

    Args:
      lengths: `[n]` integers, in tokens.
      count: number of buckets, at least 1.

    >>> choose_buckets([3, 3, 4, 9, 10], count=2)
    (4, 10)
    """
    if count < 1 or len(lengths) == 0:
        raise ValueError(f"need count >= 1 and some lengths, got {count} and {len(lengths)}")
    values, occurrences = np.unique(np.asarray(lengths), return_counts=True)
    below = np.concatenate([[0], np.cumsum(occurrences)])

    @functools.cache
    def best(end: int, buckets: int) -> tuple[int, tuple[int, ...]]:
        """Least padded tokens for the `end` shortest lengths, and the buckets."""
        if end == 0:
            return 0, ()
        if buckets == 0:
            return 1 << 62, ()
        top = int(values[end - 1])
        options = (
            (best(start, buckets - 1), int(below[end] - below[start]) * top) for start in range(end)
        )
        return min((cost + added, (*chosen, top)) for (cost, chosen), added in options)

    costs: list[Any] = [best(len(values), k) for k in range(1, min(count, len(values)) + 1)]
    return min(costs, key=lambda cost: cost[0])[1]


def endless_epochs(
    lengths: Sequence[int] | np.ndarray, buckets: Sequence[int], batch_size: int, seed: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Epochs without end over things in memory, each with every one of them once.

    Args:
      lengths: of the things.
      buckets: padded lengths, rising; the last is at least the longest.
      batch_size: the most in a batch.
      seed: of the order; batches of all buckets come mixed.

    Yields:
      The places of a batch's things, fewer at a bucket's end, and the bucket.

    >>> batches = endless_epochs([3, 9, 2], buckets=(4, 9), batch_size=2, seed=0)
    >>> sorted((sorted(places.tolist()), bucket) for places, bucket in itertools.islice(batches, 2))
    [([0, 2], 4), ([1], 9)]
    """
    rng = np.random.default_rng(seed)
    bucket_of = np.searchsorted(buckets, lengths)
    while True:
        plan = []
        for index, bucket in enumerate(buckets):
            members = rng.permutation(np.flatnonzero(bucket_of == index))
            starts = range(0, len(members), batch_size)
            plan += [(members[start : start + batch_size], bucket) for start in starts]
        for index in rng.permutation(len(plan)):
            yield plan[index]
