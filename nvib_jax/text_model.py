"""A trained model as a person uses it: texts in, texts out.

`TextModel.load("runs/quickstart")` gives encode, reconstruct, sample and interpolate; the command
line and the evaluation call these and nothing else. Sentences are batched into few static shapes,
so that each method compiles once a shape.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.generate import DecodingConfig, rewrite, write, write_prior
from nvib_jax.mesh import ambient, ways
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, layout, merge
from nvib_jax.models.structure import structure
from nvib_jax.progress import track
from nvib_jax.training.config import Config
from nvib_jax.types import Mixture, Posterior

ROWS = 64  # sentences at a time
FEW = 1024  # sentences that do not pay for compiling every bucket: all go into the widest


@dataclass(frozen=True)
class TextModel:
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

    >>> sentence = ["the dog sees a cat"]
    >>> len(model.reconstruct(sentence)), len(model.sample(3)), model.encode(sentence).mean.shape[0]
    (1, 3, 1)
    """

    config: Config
    graph: nnx.GraphDef
    params: Params
    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    count_probabilities: np.ndarray
    _compiled: dict[Any, Callable[..., Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, run_dir: str, *, which: str = "best") -> "TextModel":
        """Open the checkpoint of a run, or what `nvib export` wrote.

        Args:
          run_dir: the folder.
          which: "best" or "last" checkpoint; one that is damaged is passed over, saying so.

        Raises:
          FileNotFoundError: no checkpoint there.
          ValueError: a checkpoint of another model or of an unknown version.
        """
        from nvib_jax.training.load import load_model

        return load_model(run_dir, which=which)

    @classmethod
    def create(
        cls,
        config: Config,
        tokenizer: Tokenizer,
        buckets: Sequence[int],
        count_probabilities: np.ndarray,
        params: Params | None = None,
    ) -> "TextModel":
        """A model of this config, with fresh parameters unless given some.

        Fresh ones are made where they lie, each device of the mesh at hand its own part.
        """
        graph, shapes, init = structure(config, tokenizer.vocab_size, buckets[-1])
        if params is None:
            mesh = ambient()
            params = jax.jit(init, out_shardings=mesh and layout(mesh, shapes))()
        return cls(config, graph, params, tokenizer, tuple(buckets), count_probabilities)

    @property
    def max_length(self) -> int:
        """Longest sentence in tokens."""
        return self.buckets[-1]

    def counted(self, texts: Sequence[str]) -> "TextModel":
        """This model with `count_probabilities` as measured on these training sentences."""
        tokens, mask = pad(self.tokenize(texts), self.max_length)
        counts = np.asarray(self.compiled(_count_vectors)(self.params, tokens, mask))
        shares = np.bincount(counts, minlength=self.max_length + 1) / len(texts)
        return dataclasses.replace(self, count_probabilities=shares)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text.

        Raises:
          ValueError: no texts, an empty one, or one longer than `max_length`, named.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError(f"texts is {texts!r}; wanted a list of at least one text")
        rows = self.tokenizer.encode_batch(list(texts))
        for text, row in zip(texts, rows, strict=True):
            if not 1 <= len(row) <= self.max_length:
                raise ValueError(
                    f"the text {text[:60]!r} has {len(row)} tokens; wanted 1 to {self.max_length}"
                )
        return rows

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words of the texts that hold something the tokenizer does not know, once each."""
        words = list(dict.fromkeys(word for text in texts for word in text.split()))
        rows = self.tokenizer.encode_batch(words)
        return [w for w, row in zip(words, rows, strict=True) if self.tokenizer.unk_id in row]

    def encode(self, texts: Sequence[str]) -> Posterior:
        """The posterior of each text, padded to the longest bucket.

        Returns:
          `Posterior`, shape (len(texts), max_length + 1, ...). Pseudo-counts are logs, component 0
          is the prior's, and what `mask` says is padding has log pseudo-count 0: leave it out.
        """
        tokens, mask = pad(self.tokenize(texts), self.max_length)
        return self.compiled(NVAE.encode)(self.params, tokens, mask)

    def mixture(
        self, posterior: Posterior, *, form: str | None = None, seed: int = 0
    ) -> tuple[Mixture, str]:
        """What the decoder reads of a posterior, and the attention form that goes with it."""
        model = merge(self.graph, self.params)
        return model.read(posterior, form=form, key=jax.random.key(seed))

    def between(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """What lies between two mixtures of `mixture`, t (B,) in [0, 1], as the latent has it."""
        return merge(self.graph, self.params).latent.interpolate(a, b, t)

    def decode(
        self,
        mixture: Mixture,
        form: str = "exact",
        *,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Write the text of each mixture.

        Args:
          mixture: any; a sample, a mean, an interpolation.
          form: attention form, as `mixture()` gave it.
          decoding: None is greedy.
          seed: for sampling.
        """
        run = self.compiled(write, form=form, max_length=self.max_length, config=decoding)
        return self.texts(run(self.params, mixture, jax.random.key(seed)))

    def reconstruct(
        self,
        texts: Sequence[str],
        *,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Encode each text and write it again.

        Args:
          texts: sentences, cleaned as the training data were.
          form: how the posterior is read; None is the config's `evaluation_form`.
          decoding: None is greedy.
          seed: for "drawn" and for sampling.

        Returns:
          One text each, in order.
        """
        rows = self.tokenize(texts)
        run = self.compiled(rewrite, form=form, max_length=self.max_length, config=decoding)
        return self._in_batches(
            rows,
            lambda tokens, mask, i: run(
                self.params, tokens, mask, jax.random.fold_in(jax.random.key(seed), i)
            ),
        )

    def sample(
        self,
        count: int,
        *,
        lengths: Sequence[int] | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Write texts of mixtures drawn from the prior.

        Args:
          count: how many.
          lengths: vectors in each mixture, the prior's own left out; None draws them from
            `count_probabilities`.
          decoding: None is greedy.
          seed: of numbers of vectors, mixtures and tokens.

        Raises:
          ValueError: `count < 1`, or lengths that do not fit.
        """
        if count < 1:
            raise ValueError(f"count is {count}; wanted at least 1")
        drawn = np.random.default_rng(seed).choice(
            len(self.count_probabilities), size=count, p=self.count_probabilities
        )
        chosen = drawn if lengths is None else np.asarray(lengths)
        allowed = np.isin(chosen, np.arange(1, self.max_length + 1))
        if chosen.shape != (count,) or not allowed.all():
            raise ValueError(
                f"lengths is {chosen.tolist()}; wanted {count} of 1 to {self.max_length}"
            )
        run = self.compiled(write_prior, max_length=self.max_length, config=decoding)
        texts: list[str] = []
        rows = rows_at_once()
        starts = range(0, count, rows)
        for start in track(starts, "samples", total=len(starts), unit="batches"):
            part = np.ones(rows, np.int32)
            part[: len(chosen[start : start + rows])] = chosen[start : start + rows]
            key = jax.random.fold_in(jax.random.key(seed), start)
            texts += self.texts(run(self.params, jnp.asarray(part), key))
        return texts[:count]

    def interpolate(
        self,
        a: str,
        b: str,
        *,
        steps: int = 5,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Texts on the way from `a` to `b`: mixtures `(1 - t) a + t b`, t from 0 to 1.

        Raises:
          ValueError: `steps < 2`, or a text the model does not take.
        """
        if steps < 2:
            raise ValueError(f"steps is {steps}; wanted at least 2, the two ends")
        ends = self.encode([a, b])
        mixture, form = self.mixture(ends, form=form, seed=seed)
        first, second = (
            jax.tree.map(lambda x, i=i: jnp.repeat(x[i : i + 1], steps, axis=0), mixture)
            for i in (0, 1)
        )
        path = self.between(first, second, jnp.linspace(0.0, 1.0, steps))
        return self.decode(path, form, decoding=decoding, seed=seed)

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

    def _in_batches(self, rows: list[list[int]], run: Callable[..., jax.Array]) -> list[str]:
        """The text of each row, in order."""
        texts = [""] * len(rows)
        for part, tokens, mask in self.batches(rows):
            # The first member names the batch: no two draw the same noise.
            written = self.texts(run(tokens, mask, int(part[0])))
            for i, text in zip(part, written, strict=False):
                texts[i] = text
        return texts

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
        **options: Any,
    ) -> Any:
        """`function(module, tokens, mask, key, *arrays, **options)` over all texts.

        Args:
          function: gives a tree of arrays whose first axis is the batch's.
          texts: at least one.
          seed: of the keys; every batch has its own.
          arrays: the same for every batch.
          options: static.

        Returns:
          The tree, numpy arrays in the order of the texts.
        """
        rows, run = self.tokenize(texts), self.compiled(function, **options)
        order, parts = [], []
        for part, tokens, mask in self.batches(rows):
            key = jax.random.fold_in(jax.random.key(seed), int(part[0]))
            found = jax.device_get(run(self.params, tokens, mask, key, *arrays))
            parts.append([np.asarray(x)[: len(part)] for x in jax.tree.leaves(found)])
            order.append(part)
        place = np.argsort(np.concatenate(order))
        leaves = [np.concatenate(leaf)[place] for leaf in zip(*parts, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(found), leaves)

    def texts(self, ids: Any) -> list[str]:
        """What generated ids (B, max_length) say."""
        return [self.tokenizer.decode(row[row > 0].tolist()) for row in np.asarray(ids)]


def rows_at_once() -> int:
    """Sentences at a time: ROWS, or the next number that the mesh at hand divides evenly."""
    mesh = ambient()
    shares = 1 if mesh is None else ways(mesh, "batch")
    return -(-ROWS // shares) * shares


def _count_vectors(model: NVAE, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """(B,) vectors that are there, the prior's left out."""
    posterior = model.encode(tokens, mask)
    present = ~jnp.isneginf(posterior.log_alpha[:, 1:]) & posterior.mask[:, 1:]
    # A sentence may keep nothing but the prior's vector; a prior draw has one more at least.
    return jnp.maximum(jnp.sum(present, axis=1), 1)


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
