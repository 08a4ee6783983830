"""A trained model as a person uses it: texts in, texts out.

`TextModel.load("runs/quickstart")` has methods to encode, reconstruct, sample, interpolate, embed
and score; the command line and the evaluation use these. `nvib_jax.engine` batches texts and
compiles functions; `nvib_jax.text_input` cleans typed text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax import text_input
from nvib_jax.engine import rows_at_once
from nvib_jax.generate import DecodingConfig, rewrite, write, write_prior
from nvib_jax.models.bound import bound, bound_terms
from nvib_jax.models.build import family_of
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import merge
from nvib_jax.models.summaries import form_of
from nvib_jax.priors import LearnedPrior, Sampling, write_learned
from nvib_jax.priors.texts import sentences_of
from nvib_jax.progress import track
from nvib_jax.saved_model import SavedModel
from nvib_jax.text_input import UnusualText
from nvib_jax.types import Mixture, Posterior

__all__ = ["TextModel", "UnusualText"]


@dataclass(frozen=True, repr=False)
class TextModel(SavedModel):
    """A trained model, with methods to use it; `nvib_jax.engine.Engine` lists its attributes.

    `load`, `save` and `push_to_hub` are those of `nvib_jax.saved_model.SavedModel`.

    Texts may be given as they are typed: `encode`, `reconstruct`, `interpolate`, `embed` and
    `score` clean them as the training text was cleaned, and warn (`UnusualText`) of what that
    changed, of words the model does not know, and of lengths it was not trained on. `clean=False`
    skips cleaning and warnings, which is right for sentences of the prepared data.

    >>> sentence = ["the dog sees a cat"]
    >>> len(model.reconstruct(sentence)), len(model.sample(3)), model.encode(sentence).mean.shape[0]
    (1, 3, 1)
    >>> text = model.decode(model.encode(sentence))  # what `reconstruct` does
    >>> model.embed(sentence).shape, model.score(sentence).shape
    ((1, 16), (1,))
    """

    def __repr__(self) -> str:
        model, count = self.config.model, sum(math.prod(p.shape) for p in self.params.values())
        kind = model.kind if isinstance(model, NVAEConfig) else family_of(model)
        return (
            f"TextModel({kind}, {count:,} parameters, width {model.width}, vocabulary "
            f"{self.tokenizer.vocab_size:,}, sentences of up to {self.max_length} tokens)"
        )

    # ---- texts in

    def notes(self, texts: Sequence[str]) -> list[str]:
        """The warnings about these texts, one sentence each; an empty list if there are none.

        They say what cleaning changes, which words are unknown, and which lengths are unusual.
        """
        return text_input.notes(self, texts)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words of the texts, not cleaned, that contain something unknown, each once."""
        return text_input.unknown_words(self, texts)

    def encode(
        self, texts: Sequence[str], *, keep: float | int | None = None, clean: bool = True
    ) -> Posterior:
        """The posterior of each text, padded to the longest bucket.

        Args:
          texts: sentences.
          keep: as in `reconstruct`.
          clean: False skips cleaning and warnings.

        Returns:
          `Posterior`, shape (len(texts), max_length + 1, ...); component 0 is the prior's, and
          where `mask` is False the log pseudo-count is 0 and means nothing.
        """
        self.check_can("encode")
        tokens, mask = self.padded(
            self.tokenize(text_input.read(self, texts, clean)), self.max_length
        )
        given = () if keep is None else (text_input.amount(keep),)
        return self.compiled(_encode)(self.params, tokens, mask, *given)

    def embed(self, texts: Sequence[str], *, clean: bool = True) -> np.ndarray:
        """One vector per text: the mean of its latent vectors, weighted by their pseudo-counts.

            e = sum_i alpha_i mu_i / sum_i alpha_i

        over the present components without the prior's. If there are none, it is the prior's mean
        mu^p. It is deterministic, and `model.threshold` does not apply. Of a denoising model it is
        the mean of the encoder's last states.

        Returns:
          float32, shape (len(texts), D).
        """
        texts = text_input.read(self, texts, clean)
        self.check_can("embed")
        return self.measure(_embed, texts)

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
            found = self.measure(_log_prob, text_input.read(self, texts, clean))
            return found.astype(np.float64)
        kind = self.architecture.kind
        if not LATENTS[kind].variational:
            raise ValueError(f"the kind {kind} has no density; wanted a variational latent")
        terms = self.measure(bound_terms, text_input.read(self, texts, clean), seed)
        return bound(terms, self.count_probabilities)

    # ---- texts out

    def mixture(
        self, posterior: Posterior, *, form: str | None = None, seed: int = 0
    ) -> tuple[Mixture, str]:
        """The mixture that the decoder reads for a posterior, and the form of attention to use.

        `form` None is the config's `evaluation_form`; `seed` is for "drawn" and "average".
        """
        model = merge(self.graph, self.params)
        return model.read(posterior, form=form, key=jax.random.key(seed))

    def between(self, a: Mixture, b: Mixture, t: jax.Array) -> Mixture:
        """The latent's interpolation between two mixtures from `mixture`; t (B,) in [0, 1]."""
        return merge(self.graph, self.params).latent.interpolate(a, b, t)

    def decode(
        self,
        latent: Posterior | Mixture,
        form: str | None = None,
        *,
        decoding: DecodingConfig | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Write the text of each posterior or mixture.

        Args:
          latent: a `Posterior` from `encode`, or any `Mixture` (a sample, a mean, an
            interpolation).
          form: for a posterior, how to read it; None is the config's `evaluation_form`. For a
            mixture, the form of attention; None is the one that fits its weights.
          decoding: None is greedy.
          seed: for the forms "drawn" and "average", and for sampling tokens.

        Raises:
          ValueError: `latent` is neither a posterior nor a mixture.
        """
        self.check_can("encode")
        self.check_can("decode_step")
        if isinstance(latent, Posterior):
            mixture, form = self.mixture(latent, form=form, seed=seed)
        elif isinstance(latent, Mixture):
            mixture, form = latent, form or form_of(latent, self.architecture.evaluation_form)
        else:
            raise ValueError(
                f"latent is a {type(latent).__name__}; wanted a Posterior or a Mixture"
            )
        run = self.compiled(write, form=form, max_length=self.max_length, config=decoding)
        return self.texts(run(self.params, mixture, jax.random.key(seed)))

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
        texts = text_input.read(self, texts, clean)
        self.check_can("remember")
        how: dict[str, Any] = {"form": form, "max_length": self.max_length, "config": decoding}
        given = () if keep is None else (text_input.amount(keep),)
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
                raise ValueError(
                    "lengths, labels and sampling are of other priors than a TextModel"
                )
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
        ends = self.encode(text_input.read(self, [a, b], clean), clean=False)
        mixture, form = self.mixture(ends, form=form, seed=seed)
        first, second = (
            jax.tree.map(lambda x, i=i: jnp.repeat(x[i : i + 1], steps, axis=0), mixture)
            for i in (0, 1)
        )
        path = self.between(first, second, jnp.linspace(0.0, 1.0, steps))
        return self.decode(path, form, decoding=decoding, seed=seed)


def _encode(
    model: NVAE, tokens: jax.Array, mask: jax.Array, keep: jax.Array | None = None
) -> Posterior:
    return model.encode(tokens, mask, keep=keep)


def _log_prob(model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    return jnp.sum(model.log_probs(tokens, mask), axis=-1)


def _embed(model: Any, tokens: jax.Array, mask: jax.Array, _: jax.Array) -> jax.Array:
    return model.embed(tokens, mask)
