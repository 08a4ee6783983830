"""Runs a model over texts, with few static shapes, so that each function compiles few times.

`TextModel` is the class that people use; it builds on `Engine`, and so does the evaluation.
Sentences are grouped by length into buckets and padded, so that a function compiles once per
bucket.
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

from nvib_jax.checkpoint.description import Description
from nvib_jax.compilation_cache import quick_to_compile
from nvib_jax.config import Config
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.mesh import ambient, ways
from nvib_jax.models.bound import vectors_present
from nvib_jax.models.build import family_of
from nvib_jax.models.config import NVAEConfig, nvae_config
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, merge
from nvib_jax.progress import track

ROWS = 64  # sentences per batch
COUNTED = 1024  # training sentences from which `count_probabilities` is measured
FEW = 1024  # up to this many sentences all use the widest bucket, because compiling costs more


# Method of a module -> what a model lacks without it.
_ABILITIES = {
    "encode": "encodes no texts to one posterior",
    "remember": "rewrites no texts",
    "decode_step": "writes no texts",
    "prior_memories": "has no prior to draw texts from",
    "embed": "has no one vector of a text",
    "log_probs": "has no log-probability of a text",
}


@dataclass(frozen=True, repr=False)
class Engine:
    """Parameters and description of one model, and the functions compiled for it.

    Attributes:
      description: all of the model but its parameters; its fields are attributes of the engine too.
      params: flat dict of arrays.
    """

    description: Description
    params: Params
    _compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The resolved config of the run."""
        return self.description.config

    @property
    def architecture(self) -> NVAEConfig:
        """The config of the NVAE that this is.

        Raises:
          ValueError: the model is of another family.
        """
        self.check_can("encode")
        return nvae_config(self.config.model)

    @property
    def graph(self) -> nnx.GraphDef:
        """The module's static structure."""
        return self.description.structure.graph

    @property
    def tokenizer(self) -> Tokenizer:
        """Text <-> ids."""
        return self.description.tokenizer

    @property
    def buckets(self) -> tuple[int, ...]:
        """Padded lengths, rising; the last is the longest sentence the model takes."""
        return self.description.buckets

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens."""
        return self.description.max_length

    @property
    def count_probabilities(self) -> np.ndarray:
        """p(m), the share of training sentences with m present vectors, (max_length + 1,)."""
        return self.description.count_probabilities

    def can(self, method: str) -> bool:
        """Whether the model's module has a method; which ones a family has says what it can do."""
        return hasattr(self.description.structure.module, method)

    def check_can(self, method: str) -> None:
        """Raise ValueError if the model's module lacks one of the methods of `_ABILITIES`."""
        if not self.can(method):
            raise ValueError(f"a {family_of(self.config.model)} model {_ABILITIES[method]}")

    @property
    def encodes(self) -> bool:
        """Whether the model gives texts a posterior."""
        return self.can("encode")

    @property
    def writes(self) -> bool:
        """Whether the model has a decoder that writes texts."""
        return self.can("decode_step")

    def described(self, **changes: Any) -> Self:
        """This model with some fields of its description changed."""
        changed = dataclasses.replace(self.description, **changes)
        return dataclasses.replace(self, description=changed)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without cleaning it.

        Raises:
          ValueError: no texts, or one that is not a str, is empty, or is longer than `max_length`.
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
        """This model with `count_probabilities` as measured on these training sentences.

        A model that encodes nothing keeps those that it has.
        """
        if not self.encodes:
            return self
        tokens, mask = self.padded(self.tokenize(texts), self.max_length)
        counts = np.asarray(self.compiled(_count_vectors)(self.params, tokens, mask))
        shares = np.bincount(counts, minlength=self.max_length + 1) / len(texts)
        return self.described(count_probabilities=shares)

    def padded(
        self, rows: Sequence[Sequence[int]], width: int, count: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ragged ids -> (tokens int32, mask bool), each (count or len(rows), width)."""
        tokens = np.full((count or len(rows), width), self.tokenizer.special.pad, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = True
        return tokens, mask

    def texts(self, ids: Any) -> list[str]:
        """The text of each row of generated ids (B, max_length)."""
        pad = self.tokenizer.special.pad
        return [self.tokenizer.decode(row[row != pad].tolist()) for row in np.asarray(ids)]

    def compiled(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`function(module, *arrays, **options)` as a jitted function of `(params, *arrays)`.

        It is made once for each function, mesh and set of options.
        """
        mesh = ambient()
        name = (function, mesh, *sorted(options.items()))
        if name not in self._compiled:
            graph = self.graph

            def run(params: Params, *arrays: Any) -> Any:
                return function(merge(graph, params), *arrays, **options)

            # On a mesh the result is replicated, so that every process has all of it.
            self._compiled[name] = jax.jit(
                run, out_shardings=mesh and P(), compiler_options=quick_to_compile()
            )
        return self._compiled[name]

    def batches(
        self, rows: Sequence[Sequence[int]], *, bar: bool = True
    ) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array]]:
        """Batches of one bucket each: (indices of the rows, tokens, mask).

        Every batch has `rows_at_once` rows; missing ones are all padding. `bar` shows a progress
        bar; turn it off if the caller shows one for each batch.
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
            tokens, mask = self.padded([rows[i] for i in part], width, rows_at_once())
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
          function: returns a tree of arrays whose first axis is the batch's.
          texts: at least one; they are not cleaned.
          seed: of the keys. Every batch has its own key, derived from the index of its first text.
          arrays: further arguments, the same for every batch.
          then: `then(module, found, key)` is applied to what the function returns. It is compiled
            separately, so that several functions can share one compiled decoding loop, which takes
            longest to compile.
          options: static arguments of the function.

        Returns:
          The tree, with numpy arrays in the order of the texts.
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
    """The number of present vectors of each sentence without the prior's, but at least 1, (B,)."""
    # A sentence may have no vector but the prior's. It counts as 1, because a prior draw always has
    # at least one vector more than the prior's.
    return jnp.maximum(vectors_present(model.encode(tokens, mask)), 1)


def check_texts(texts: Sequence[str]) -> None:
    """Raise ValueError for anything but a list of at least one text."""
    if isinstance(texts, str) or texts is None or not len(texts):
        raise ValueError(f"texts is {texts!r}; wanted a list of at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {text!r}; wanted a str")


def rows_at_once() -> int:
    """Sentences per batch: ROWS, rounded up to a number that the current mesh divides evenly."""
    mesh = ambient()
    shares = 1 if mesh is None else ways(mesh, "batch")
    return -(-ROWS // shares) * shares
