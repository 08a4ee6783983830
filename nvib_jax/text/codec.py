"""Texts to latents and back: the part of `TextModel` on which its other methods build."""

from collections.abc import Sequence

import jax

from nvib_jax.generate import DecodingConfig, write
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import merge
from nvib_jax.models.summaries import form_of
from nvib_jax.text import as_typed
from nvib_jax.text.engine import Engine
from nvib_jax.types import Mixture, Posterior


class Codec(Engine):
    """An engine that encodes texts and decodes latents; `TextModel` documents its use."""

    def notes(self, texts: Sequence[str]) -> list[str]:
        """The warnings about these texts, one sentence each; an empty list if there are none.

        They say what cleaning changes, which words are unknown, and which lengths are unusual.
        """
        return as_typed.notes(self, texts)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Words of the texts, not cleaned, that contain something unknown, each once."""
        return as_typed.unknown_words(self, texts)

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
            self.tokenize(as_typed.read(self, texts, clean)), self.max_length
        )
        given = () if keep is None else (as_typed.amount(keep),)
        return self.compiled(_encode)(self.params, tokens, mask, *given)

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


def _encode(
    model: NVAE, tokens: jax.Array, mask: jax.Array, keep: jax.Array | None = None
) -> Posterior:
    return model.encode(tokens, mask, keep=keep)
