"""A trained model as a person uses it: texts in, texts out.

`TextModel.load("runs/quickstart")` has methods to encode, reconstruct, sample, embed, compare and
score, and by inheritance those of `nvib_jax.text.codec` (encode, decode) and `nvib_jax.text.edits`
(interpolate, merge, edit, paraphrase, drop); the command line and the evaluation use these.
`nvib_jax.text.engine` batches texts and compiles functions; `nvib_jax.text.as_typed` cleans what is
typed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.checks import check_choice
from nvib_jax.generate import DecodingConfig, rewrite, write_prior
from nvib_jax.kernels import log_similarity
from nvib_jax.models.bound import bound, bound_terms
from nvib_jax.models.build import family_of
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.latents import LATENTS
from nvib_jax.priors import LearnedPrior, Sampling, write_learned
from nvib_jax.priors.texts import sentences_of
from nvib_jax.progress import track
from nvib_jax.text import as_typed
from nvib_jax.text.as_typed import UnusualText
from nvib_jax.text.edits import Editor
from nvib_jax.text.engine import rows_at_once
from nvib_jax.text.saved import SavedModel
from nvib_jax.types import Mixture
from nvib_jax.whitening import Whitening

__all__ = ["TextModel", "UnusualText"]

EMBEDDINGS = ("mean", "whitened")
_COMPARED = 64  # mixtures of either side that are compared at once


@dataclass(frozen=True, repr=False)
class TextModel(Editor, SavedModel):
    """A trained model, with methods to use it; `nvib_jax.text.engine.Engine` lists its attributes.

    `load`, `save` and `push_to_hub` are those of `nvib_jax.text.saved.SavedModel`; `interpolate`,
    `merge`, `edit`, `paraphrase` and `drop` those of `nvib_jax.text.edits.Editor`.

    Texts may be given as they are typed: all methods that take some clean them as the training text
    was cleaned, and warn (`UnusualText`) of what that changed, of words the model does not know,
    and of lengths it was not trained on. `clean=False` skips cleaning and warnings, which is right
    for sentences of the prepared data.

    >>> sentence = ["the dog sees a cat"]
    >>> len(model.reconstruct(sentence)), len(model.sample(3)), model.encode(sentence).mean.shape[0]
    (1, 3, 1)
    >>> text = model.decode(model.encode(sentence))  # what `reconstruct` does
    >>> model.embed(sentence).shape, model.score(sentence).shape
    ((1, 16), (1,))
    >>> both = model.merge(["the dog sees a cat", "they sleep in a house"], [2, 1])
    >>> model.similarity(sentence, sentence).shape, len(model.paraphrase(sentence[0], 3))
    ((1, 1), 3)
    >>> past, now = ["a cat slept in a house"], ["a cat sleeps in a house"]
    >>> edited = model.edit(sentence, towards=past, away=now)
    """

    def __repr__(self) -> str:
        model, count = self.config.model, sum(math.prod(p.shape) for p in self.params.values())
        kind = model.kind if isinstance(model, NVAEConfig) else family_of(model)
        return (
            f"TextModel({kind}, {count:,} parameters, width {model.width}, vocabulary "
            f"{self.tokenizer.vocab_size:,}, sentences of up to {self.max_length} tokens)"
        )

    # ---- texts in

    def embed(
        self,
        texts: Sequence[str],
        *,
        how: str = "mean",
        like: Sequence[str] | None = None,
        clean: bool = True,
    ) -> np.ndarray:
        """One vector per text: the mean of its latent vectors, weighted by their pseudo-counts.

            e = sum_i alpha_i mu_i / sum_i alpha_i

        over the present components without the prior's. If there are none, it is the prior's mean
        mu^p. It is deterministic, and `model.threshold` does not apply. Of a denoising model it is
        the mean of the encoder's last states. `similarity` compares texts without one vector.

        Args:
          texts: sentences.
          how: "mean" is `e`; "whitened" is `(e - mean) C^(-1/2)` with the mean and the covariance
            of the embeddings of `like` (`nvib_jax.whitening`, with its ridge).
          like: some hundreds of sentences such as will be compared; None is `texts`. For "whitened"
            only.
          clean: False skips cleaning and warnings, of `like` too.

        Returns:
          float32, shape (len(texts), D).

        Raises:
          ValueError: an unknown `how`, `like` without "whitened", or fewer than two texts to learn
            the whitening from.
        """
        check_choice("how", how, EMBEDDINGS)
        if like is not None and how != "whitened":
            raise ValueError(f"like is given with how={how!r}; 'whitened' alone takes it")
        texts = as_typed.read(self, texts, clean)
        self.check_can("embed")
        found = self.measure(_embed, texts)
        if how == "mean":
            return found
        known = found
        if like is not None:
            known = self.measure(_embed, as_typed.read(self, like, clean))
        return Whitening.of(known)(found)

    def similarity(
        self,
        a: Sequence[str],
        b: Sequence[str],
        *,
        bandwidth: float | None = None,
        clean: bool = True,
    ) -> np.ndarray:
        """How alike texts are as sets of vectors: the cosine of their mixtures under a kernel.

            k(P, Q) / sqrt(k(P, P) k(Q, Q))

        It needs no single vector for a text, and is 1 for the same vectors with the same weights.
        `nvib_jax.kernels` has k; it is that of the vectors' means.

        Args:
          a: sentences.
          b: sentences.
          bandwidth: the distance at which two vectors are alike, in the vectors' units; None is
            sqrt(D) / 3, which measured best where the prior's variance is 1.
          clean: False skips cleaning and warnings.

        Returns:
          float32, shape (len(a), len(b)), 0 to 1.
        """
        self.check_can("encode")
        wide = self.config.model.width**0.5 / 3 if bandwidth is None else bandwidth
        a, b = as_typed.read(self, a, clean), as_typed.read(self, b, clean)
        left, right = self.vectors(a, clean=False), self.vectors(b, clean=False)
        rows = [
            [np.asarray(log_similarity(one, other, wide)) for other in _parts(right, len(b))]
            for one in _parts(left, len(a))
        ]
        return np.minimum(np.exp(np.block(rows)), np.float32(1.0))

    def score(self, texts: Sequence[str], *, seed: int = 0, clean: bool = True) -> np.ndarray:
        """A lower bound on log p(x) of each text in nats: the evidence lower bound (ELBO).

            log p(m) + log p(x | F) - KL_G - KL_D        F drawn once from q(F | x)

        with exact KLs; `nvib_jax.evaluation.evidence_bound` averages it over texts. It is a bound
        in expectation over `seed`; end-of-sentence counts as a token. Of a causal language model it
        is log p(x) itself.

        Args:
          texts: sentences.
          seed: of the drawn mixtures.
          clean: False skips cleaning and warnings; otherwise the cleaned text is scored.

        Returns:
          float64 nats, shape (len(texts),). For nats per token, divide by the tokens plus one.

        Raises:
          ValueError: the latent has no density (kinds T and AAE), so there is no bound.
        """
        if self.can("log_probs"):
            found = self.measure(_log_prob, as_typed.read(self, texts, clean))
            return found.astype(np.float64)
        kind = self.architecture.kind
        if not LATENTS[kind].variational:
            raise ValueError(f"the kind {kind} has no density; wanted a variational latent")
        terms = self.measure(bound_terms, as_typed.read(self, texts, clean), seed)
        return bound(terms, self.count_probabilities)

    # ---- texts out

    def reconstruct(
        self,
        texts: Sequence[str],
        *,
        form: str | None = None,
        keep: float | int | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
        clean: bool = True,
    ) -> list[str]:
        """Encode each text and write it again.

        Args:
          texts: sentences.
          keep: the share (0 to 1) or the number of each text's vectors that the decoder is given:
            those of the largest pseudo-counts (`nvib_jax.keep_largest`), or of the choice of the
            model's gate. None is all, or what the gate leaves.
          form: how the posterior is read; None is the config's `evaluation_form`.
          decoding: None is greedy.
          seed: for the forms "drawn" and "average", and for sampling tokens.
          clean: False skips cleaning and warnings.

        Returns:
          One text for each, in order.
        """
        texts = as_typed.read(self, texts, clean)
        self.check_can("remember")
        how: dict[str, Any] = {"form": form, "max_length": self.max_length, "config": decoding}
        given = () if keep is None else (as_typed.amount(keep),)
        return self.texts(self.measure(rewrite, texts, seed, arrays=given, **how))

    def sample(
        self,
        count: int,
        *,
        lengths: Sequence[int] | None = None,
        prior: "LearnedPrior | TextModel | None" = None,
        labels: Mapping[str, str] | None = None,
        sampling: Sampling | None = None,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Write texts from mixtures that are drawn from a prior.

        Args:
          count: how many.
          lengths: number of vectors in each mixture without the prior's; None draws them from
            `count_probabilities`.
          prior: one that was fitted to this model's latents (`nvib_jax.priors`); or a causal
            language model, whose sentences are encoded (a mixture of posteriors as prior, Tomczak &
            Welling 2018, arXiv 1705.07120); None is the one that the model was trained with.
          labels: of a learned prior: name -> the value that all texts shall have.
          sampling: of a learned prior: how it draws.
          decoding: None is greedy.
          seed: for the numbers of vectors, the mixtures and the tokens.

        Raises:
          ValueError: `count < 1`, lengths that do not fit, a prior that was fitted to another
            model, or labels that it was not fitted with.
        """
        self.check_can("decode_step")
        if isinstance(prior, TextModel):
            if lengths or labels or sampling:
                raise ValueError("lengths, labels and sampling are of priors that are no TextModel")
            written = sentences_of(prior, self, count, seed=seed)
            return self.reconstruct(written, decoding=decoding, seed=seed, clean=False)
        self.check_can("prior_memories")
        if lengths is not None:
            self.check_can("encode")
        if count < 1:
            raise ValueError(f"count is {count}; wanted at least 1")
        shares = self.count_probabilities
        drawn = np.random.default_rng(seed).choice(len(shares), size=count, p=shares)
        chosen = drawn if lengths is None else np.asarray(lengths)
        if chosen.shape != (count,) or not np.isin(chosen, np.arange(1, len(shares))).all():
            raise ValueError(
                f"lengths is {chosen.tolist()}; wanted {count} of 1 to {self.max_length}"
            )
        how: dict[str, Any] = {"max_length": self.max_length, "config": decoding}
        arrays: tuple[Any, ...] = ()
        if prior is None:
            if labels or sampling:
                raise ValueError("labels and sampling are of a learned prior, and prior is None")
            run = self.compiled(write_prior, **how)
        else:
            prior.check_fits(self.params)
            run = self.compiled(write_learned, **how, **prior.static(sampling))
            arrays = prior.arrays(rows_at_once(), labels)
        texts: list[str] = []
        starts = range(0, count, rows := rows_at_once())
        for start in track(starts, "samples", total=len(starts), unit="batches"):
            part = np.ones(rows, np.int32)
            part[: count - start] = chosen[start : start + rows]
            key = jax.random.fold_in(jax.random.key(seed), start)
            texts += self.texts(run(self.params, jnp.asarray(part), key, *arrays))
        return texts[:count]


def _log_prob(model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    return jnp.sum(model.log_probs(tokens, mask), axis=-1)


def _embed(model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    return model.embed(tokens, mask)


def _parts(mixture: Mixture, count: int) -> list[Mixture]:
    """The rows of a mixture, `_COMPARED` at a time."""
    starts = range(0, count, _COMPARED)
    return [jax.tree.map(lambda x, i=i: x[i : i + _COMPARED], mixture) for i in starts]
