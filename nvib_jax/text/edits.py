"""What one does with the latents of texts: walk between them, merge, edit, paraphrase, drop.

These are methods of `TextModel`. The mathematics are in `nvib_jax.editing` and, of what depends on
the kind of latent, in `nvib_jax.models.latents`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax import editing
from nvib_jax.checks import check_count
from nvib_jax.generate import DecodingConfig
from nvib_jax.mixture import expected
from nvib_jax.models.latents import LATENTS
from nvib_jax.posterior import keep_largest
from nvib_jax.text import as_typed
from nvib_jax.text.codec import Codec
from nvib_jax.types import Mixture


class Dropped(NamedTuple):
    """A vector that was taken away, and what is written without it.

    Attributes:
      vector: the token whose vector it is, or "vector 2" if vectors are no tokens'; empty where
        nothing was taken away.
      text: what is written.
    """

    vector: str
    text: str


class Editor(Codec):
    """A codec that changes latents between reading and writing; `TextModel` documents its use."""

    def interpolate(
        self,
        a: str,
        b: str,
        *,
        steps: int = 5,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> list[str]:
        """Texts on the way from `a` to `b`: mixtures `(1 - t) a + t b`, t from 0 to 1.

        Raises:
          ValueError: `steps < 2`, or a text the model does not take.
        """
        if steps < 2:
            raise ValueError(f"steps is {steps}; wanted at least 2, the two ends")
        self.check_can("encode")
        ends = self.encode(as_typed.read(self, [a, b], clean), clean=False)
        mixture, form = self.mixture(ends, form=form, seed=seed)
        first, second = (
            jax.tree.map(lambda x, i=i: jnp.repeat(x[i : i + 1], steps, axis=0), mixture)
            for i in (0, 1)
        )
        path = self.between(first, second, jnp.linspace(0.0, 1.0, steps))
        return self.decode(path, form, decoding=decoding, seed=seed)

    def merge(
        self,
        texts: Sequence[str],
        weights: Sequence[float] | None = None,
        *,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> str:
        """One text of several: their mixtures are joined, and their weights divided.

            F = sum_k w_k F_k / sum_k w_k

        It interpolates from what is merged so far to the next text, at t = w_k / (w_1 + ... + w_k);
        so what merging means for a kind of latent is what its interpolation means. Pooled vectors
        are averaged.

        Args:
          texts: at least one.
          weights: how much each counts, at least 0 and not all 0; None is all alike.
          form: how the posteriors are read; None is the config's `evaluation_form`.
          decoding: None is greedy.
          seed: for the forms "drawn" and "average", and for sampling tokens.
          clean: False skips cleaning and warnings.

        Raises:
          ValueError: weights that do not fit, or a text the model does not take.
        """
        self.check_can("encode")
        texts = as_typed.read(self, texts, clean)
        shares = np.asarray([1.0] * len(texts) if weights is None else weights, np.float32)
        fits = shares.shape == (len(texts),) and (shares >= 0).all()
        if not fits or not 0 < shares.sum() < np.inf:
            raise ValueError(
                f"weights is {shares.tolist()}; wanted {len(texts)} of at least 0, not all 0"
            )
        mixture, form = self.mixture(self.encode(texts, clean=False), form=form, seed=seed)
        counted = [int(i) for i in np.flatnonzero(shares)]
        merged = _row(mixture, counted[0])
        for place, i in enumerate(counted[1:], 2):
            t = shares[i : i + 1] / shares[counted[:place]].sum()
            merged = self.between(merged, _row(mixture, i), jnp.asarray(t))
        return self.decode(merged, form, decoding=decoding, seed=seed)[0]

    def edit(
        self,
        texts: Sequence[str],
        *,
        towards: Sequence[str],
        away: Sequence[str],
        strength: float = 1.0,
        bandwidth: float | None = None,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> list[str]:
        """Texts with more of what one set of examples has and another has not.

        `nvib_jax.editing.shift` moves the vectors. How well it works depends on the model, and the
        best strength on the attribute: `nvib_jax.evaluation.editing` measures both where there are
        labels.

        Args:
          texts: to be edited.
          towards: examples of what is wanted: in the past, say. Some hundreds are better than ten.
          away: examples of the opposite.
          strength: how many times the difference is added; 0 is a reconstruction.
          bandwidth: how near examples have to be to a vector to move it, in the units of the
            vectors; None moves all vectors alike, by the difference of the sets' means.
          form: how the posterior is read; None is the config's `evaluation_form`.
          decoding: None is greedy.
          seed: for the forms "drawn" and "average", and for sampling tokens.
          clean: False skips cleaning and warnings, of the examples too.

        Returns:
          One text for each, in order.
        """
        self.check_can("encode")
        texts = as_typed.read(self, texts, clean)
        # Warnings name the caller of this method; in a comprehension they would name this line.
        towards, away = as_typed.read(self, towards, clean), as_typed.read(self, away, clean)
        sets = self.vectors(towards, clean=False), self.vectors(away, clean=False)
        posterior = self.encode(texts, clean=False)
        moved = editing.shift(posterior, *sets, strength=strength, bandwidth=bandwidth)
        return self.decode(moved, form, decoding=decoding, seed=seed)

    def vectors(self, texts: Sequence[str], *, clean: bool = True) -> Mixture:
        """The vectors of each text as a mixture: the posterior's means, without the prior's.

        Returns:
          A `Mixture` of impulses, shape (len(texts), max_length + 1, D).
        """
        posterior = self.encode(as_typed.read(self, texts, clean), clean=False)
        mean = expected(editing.without_prior(posterior))
        return dataclasses.replace(mean, log_variance=None, weights_kind=None)

    def paraphrase(
        self,
        text: str,
        count: int = 5,
        *,
        temperature: float = 1.0,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> list[str]:
        """Texts of `count` draws of the text's posterior; some may be alike.

        Args:
          text: to be said otherwise.
          count: how many draws.
          temperature: of the draws (`nvib_jax.editing.temper`): 1 is the posterior's noise, which
            the decoder was trained with; less stays nearer to the text.
          decoding: None is greedy.
          seed: of the draws, and for sampling tokens.
          clean: False skips cleaning and warnings.

        Raises:
          ValueError: `count < 1`, a temperature of at most 0, or a latent that draws nothing
            (kind T).
        """
        self.check_can("encode")
        kind = self.architecture.kind
        if not LATENTS[kind].variational:
            raise ValueError(f"a {kind} draws nothing; wanted a variational latent")
        count = check_count("count", count)
        posterior = self.encode(as_typed.read(self, [text], clean), clean=False)
        calm = editing.temper(posterior, temperature)
        rows = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), calm)
        return self.decode(rows, "drawn", decoding=decoding, seed=seed)

    def drop(
        self,
        text: str,
        *,
        alone: bool = False,
        form: str | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> list[Dropped]:
        """What is written as the text's vectors are taken away one by one.

        The vectors are those of the whole text: unlike `reconstruct(keep=...)`, no gate chooses
        again.

        Args:
          text: to be encoded.
          alone: whether each vector is taken away alone, in the order of the text, so that one sees
            what is lost with it; otherwise all those before it are gone too, the smallest
            pseudo-count first, and the last one stays.
          form: how the posterior is read; None is the config's `evaluation_form`.
          decoding: None is greedy.
          seed: for the forms "drawn" and "average", and for sampling tokens.
          clean: False skips cleaning and warnings.

        Returns:
          First the text with all vectors, then one `Dropped` for each that is taken away.

        Raises:
          ValueError: the text has one vector only.
        """
        self.check_can("encode")
        (text,) = as_typed.read(self, [text], clean)
        posterior = self.encode([text], clean=False)
        own = np.flatnonzero(np.asarray(editing.without_prior(posterior).present[0]))
        if len(own) < 2:
            raise ValueError(f"the text {text[:60]!r} has {len(own)} vectors; wanted at least 2")
        if alone:
            left = editing.each_left_out(posterior)
            order = own
            rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y[own]]), posterior, left)
        else:
            falling = np.argsort(-np.asarray(posterior.log_alpha)[0, own], kind="stable")
            order = own[falling[:0:-1]]
            many = jax.tree.map(lambda x: jnp.repeat(x, len(own), axis=0), posterior)
            rows = keep_largest(many, jnp.arange(len(own), 0, -1, dtype=jnp.int32))
        (ids,) = self.tokenize([text])
        pools = LATENTS[self.architecture.kind].pools
        names = [f"vector {i}" if pools else self.tokenizer.decode([ids[i - 1]]) for i in order]
        written = self.decode(rows, form, decoding=decoding, seed=seed)
        return [Dropped(*step) for step in zip(["", *names], written, strict=True)]


def _row(mixture: Mixture, i: int) -> Mixture:
    return jax.tree.map(lambda x: x[i : i + 1], mixture)
