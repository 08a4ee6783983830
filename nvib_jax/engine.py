"""What runs a model over texts: ids in few static shapes, and functions that compile once a shape.

`TextModel` is the face that people call; this is what it stands on, and what the evaluation uses.
Sentences are sorted by length into buckets and padded, so that a function compiles once a bucket.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from nvib_jax.config import Config
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.mesh import ambient, ways
from nvib_jax.models.bound import vectors_present
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, merge
from nvib_jax.progress import track

ROWS = 64  # sentences at a time
FEW = 1024  # sentences that do not pay for compiling every bucket: all go into the widest


@dataclass(frozen=True, repr=False)
class Engine:
    """Parameters, structure and tokenizer of one model.

    Attributes:
      config: the resolved config of the run.
      graph: the module's static structure.
      params: flat dict of arrays.
      tokenizer: text <-> ids.
      buckets: padded lengths, rising; the last is the longest sentence the model takes.
      count_probabilities: p(m), the share of training sentences with m vectors, (max_length + 1,).
        It is the distribution of lengths where no vector is ever empty; a `relu` model drops some,
        and its decoder is told m, not n, so that prior draws and bounds must count m too.
    """

    config: Config
    graph: nnx.GraphDef
    params: Params
    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    count_probabilities: np.ndarray
    _compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens."""
        return self.buckets[-1]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, as it stands.

        Raises:
          ValueError: no texts, or one that is no str, is empty, or is longer than `max_length`.
        """
        check_texts(texts)
        rows = self.tokenizer.encode_batch(list(texts))
        for text, row in zip(texts, rows, strict=True):
            if not 1 <= len(row) <= self.max_length:
                raise ValueError(
                    f"the text {text[:60]!r} has {len(row)} tokens; wanted 1 to {self.max_length}"
                )
        return rows

    def counted(self, texts: Sequence[str]) -> Self:
        """This model with `count_probabilities` as measured on these training sentences."""
        tokens, mask = pad(self.tokenize(texts), self.max_length)
        counts = np.asarray(self.compiled(_count_vectors)(self.params, tokens, mask))
        shares = np.bincount(counts, minlength=self.max_length + 1) / len(texts)
        return dataclasses.replace(self, count_probabilities=shares)

    def texts(self, ids: Any) -> list[str]:
        """What generated ids (B, max_length) say."""
        return [self.tokenizer.decode(row[row > 0].tolist()) for row in np.asarray(ids)]

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function(module, *arrays, **options)` as a jitted `(params, *arrays)`, made once."""
        mesh = ambient()
        name = (function, mesh, *sorted(options.items()))
        if name not in self._compiled:
            graph = self.graph

            def run(params: Params, *arrays: Any) -> Any:
                return function(merge(graph, params), *arrays, **options)

            # On a mesh every process has the whole result.
            self._compiled[name] = jax.jit(run, out_shardings=mesh and P())
        return self._compiled[name]

    def batches(
        self, rows: Sequence[Sequence[int]], *, bar: bool = True
    ) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array]]:
        """Rows by bucket: (which they are, tokens, mask), filled up to `rows_at_once`.

        `bar` shows how many are done; one who has a bar for each batch wants none.
        """
        buckets = self.buckets if len(rows) > FEW else self.buckets[-1:]
        bucket_of = np.searchsorted(buckets, [len(row) for row in rows])
        parts = []
        for bucket, width in enumerate(buckets):
            members = np.flatnonzero(bucket_of == bucket)
            starts = range(0, len(members), rows_at_once())
            parts += [(members[i : i + rows_at_once()], width) for i in starts]
        least = 5 if bar else len(parts) + 1
        for part, width in track(parts, "measuring", total=len(parts), unit="batches", least=least):
            tokens, mask = pad([rows[i] for i in part], width, rows_at_once())
            yield part, jnp.asarray(tokens), jnp.asarray(mask)

    def measure(
        self,
        function: Callable[..., Any],
        texts: Sequence[str],
        seed: int = 0,
        *,
        arrays: Sequence[Any] = (),
        then: Callable[..., Any] | None = None,
        **options: Any,
    ) -> Any:
        """`function(module, tokens, mask, key, *arrays, **options)` over all texts.

        Args:
          function: gives a tree of arrays whose first axis is the batch's.
          texts: at least one; they are taken as they stand.
          seed: of the keys; every batch has its own, named by its first member.
          arrays: the same for every batch.
          then: `then(module, found, key)` of what the function gives. It is compiled apart, so that
            functions which differ share it: a decoding loop takes longest to compile.
          options: static.

        Returns:
          The tree, numpy arrays in the order of the texts.
        """
        rows, run = self.tokenize(texts), self.compiled(function, **options)
        last = then and self.compiled(then)
        order, parts = [], []
        for part, tokens, mask in self.batches(rows):
            key = jax.random.fold_in(jax.random.key(seed), int(part[0]))
            given = run(self.params, tokens, mask, key, *arrays)
            found = jax.device_get(last(self.params, given, key) if last else given)
            parts.append([np.asarray(x)[: len(part)] for x in jax.tree.leaves(found)])
            order.append(part)
        place = np.argsort(np.concatenate(order))
        leaves = [np.concatenate(leaf)[place] for leaf in zip(*parts, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(found), leaves)


def _count_vectors(model: NVAE, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """(B,) vectors that are there, the prior's left out."""
    # A sentence may keep nothing but the prior's vector; a prior draw has one more at least.
    return jnp.maximum(vectors_present(model.encode(tokens, mask)), 1)


def check_texts(texts: Sequence[str]) -> None:
    """ValueError for anything but a list of at least one text."""
    if isinstance(texts, str) or texts is None or not len(texts):
        raise ValueError(f"texts is {texts!r}; wanted a list of at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {text!r}; wanted a str")


def rows_at_once() -> int:
    """Sentences at a time: ROWS, or the next number that the mesh at hand divides evenly."""
    mesh = ambient()
    shares = 1 if mesh is None else ways(mesh, "batch")
    return -(-ROWS // shares) * shares


def pad(
    rows: Sequence[Sequence[int]], width: int, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids -> (tokens int32, mask bool), each (count or len(rows), width)."""
    tokens = np.zeros((count or len(rows), width), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = True
    return tokens, mask
