"""A bound on the likelihood of text: `log p(x) >= log p(m) + E log p(x|F) - KL_G - KL_D`.

Exact KLs, one drawn mixture a sentence, and the cost of telling the decoder the number m of
components. Where a pseudo-count map gives exact zeros, those components are in neither density and
m counts the rest; which tokens they came from costs nothing, since a mixture is a set. DESIGN 3.7.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.models.nvae import NVAE, decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.text_model import ROWS, TextModel, pad


def evidence_bound(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """The evidence lower bound and its parts, means over sentences, in nats.

    Args:
      model: the model.
      texts: held-out sentences.
      seed: of the drawn mixtures.

    Returns:
      "elbo_sentence", "elbo_token" (a ratio of sums; end-of-sentence is a token), its parts a
      sentence "log_likelihood", "kl_gaussian", "kl_dirichlet", "log_prob_count", and
      "reconstruction_token", the likelihood part a token.
    """
    rows = model.tokenize(texts)
    key, parts = jax.random.key(seed), []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        tokens, mask = pad(part, model.max_length, ROWS)
        terms = model.compiled(bound_terms)(
            model.params, jnp.asarray(tokens), jnp.asarray(mask), jax.random.fold_in(key, start)
        )
        parts.append([np.asarray(t)[: len(part)] for t in terms])
    log_p, kl_g, kl_d, present = (np.concatenate(t) for t in zip(*parts, strict=True))
    lengths = np.array([len(row) for row in rows])
    log_count = log_count_probability(model.count_probabilities, present)
    bound = log_p + log_count - kl_g - kl_d
    count = float(np.sum(lengths + 1))
    return {
        "elbo_sentence": float(bound.mean()),
        "elbo_token": float(bound.sum()) / count,
        "reconstruction_token": float(log_p.sum()) / count,
        "log_likelihood": float(log_p.mean()),
        "kl_gaussian": float(kl_g.mean()),
        "kl_dirichlet": float(kl_d.mean()),
        "log_prob_count": float(log_count.mean()),
    }


def bound_terms(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(log p(x|F) of a drawn F, exact KL_G, exact KL_D) in nats and vectors present, each (B,)."""
    posterior = model.encode(tokens, mask)
    inputs, targets, counted = decoder_io(tokens, mask)
    logits = model.decode(model.memories(model.draw(posterior, key), "exact"), inputs)
    present = ~jnp.isneginf(posterior.log_alpha[:, 1:]) & posterior.mask[:, 1:]
    return (
        log_likelihood(logits, targets, counted),
        *model.latent.kl(posterior),
        jnp.sum(present, axis=-1),
    )


def log_count_probability(probabilities: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`log p(m)` with a thousandth of the mass spread evenly, so that no count is impossible."""
    smoothed = 0.999 * probabilities + 0.001 / len(probabilities)
    return np.log(smoothed[counts]).astype(np.float32)
