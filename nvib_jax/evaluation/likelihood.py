"""Bounds on the likelihood of text, in nats: the ELBO and the importance-weighted bound.

    log p(x) >= log p(m) + E_q log p(x | F) - KL_G - KL_D                                    ELBO
    log p(x) >= E_q log 1/k sum_j p(m) p(x | F_j) p(F_j) / q(F_j | x)                        IWAE_k

with exact KLs and drawn mixtures. m is the number of present vectors. The decoder sees m, so the
bound has to pay `log p(m)` for it. Components with a pseudo-count of exactly 0 are in neither
density: p(F | m) and q(F | x) are densities of ordered sets of m vectors and their weights. Which
tokens the vectors came from costs nothing, because a mixture is a set.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.models.bound import (
    bound,
    bound_terms,
    log_count_probability,
    vectors_present,
)
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.progress import track
from nvib_jax.text_model import TextModel

DRAWS = 10  # most draws of each sentence in one call of the compiled function


def evidence_bound(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """The evidence lower bound and its parts, means over sentences, in nats.

    Args:
      model: the model.
      texts: held-out sentences.
      seed: of the drawn mixtures.

    Returns:
      "elbo_sentence", "elbo_token" (a ratio of sums; end-of-sentence is a token), their standard
      errors over sentences "elbo_sentence_error", "elbo_token_error"; "perplexity",
      `exp(-elbo_token)`, an upper bound on the model's; the parts per sentence "log_likelihood",
      "kl_gaussian", "kl_dirichlet", for a latent of symbols "kl_codes", and "log_prob_count"; and
      "reconstruction_token", the likelihood part per token. The bound is nan for a latent that has
      no density (T, AAE).

    >>> bound = evidence_bound(model, texts)
    >>> parts = bound["log_likelihood"] + bound["log_prob_count"]
    >>> abs(parts - bound["kl_gaussian"] - bound["kl_dirichlet"] - bound["elbo_sentence"]) < 1e-3
    True
    """
    terms = model.measure(bound_terms, texts, seed)
    log_p, kls, present = terms
    log_count = log_count_probability(model.count_probabilities, present)
    elbo = bound(terms, model.count_probabilities)
    if not is_variational(model):
        elbo = np.full_like(elbo, np.nan)
    tokens = token_counts(model, texts)
    per_token, error = ratio(elbo, tokens)
    return {
        "elbo_sentence": float(elbo.mean()),
        "elbo_sentence_error": standard_error(elbo),
        "elbo_token": per_token,
        "elbo_token_error": error,
        "perplexity": math.exp(min(-per_token, 700.0)),
        "reconstruction_token": ratio(log_p, tokens)[0],
        "log_likelihood": float(log_p.mean()),
        **{f"kl_{name}": float(kl.mean()) for name, kl in kls.items()},
        "log_prob_count": float(log_count.mean()),
    }


def importance_bounds(
    model: TextModel, texts: Sequence[str], *, draws: int = 100, seed: int = 0
) -> dict[int, np.ndarray]:
    """IWAE_k of each text for k = 1, 10, 100 ... and `draws`, all from the same draws.

    IWAE_k is averaged over the `draws / k` groups of k draws. Each k divides the next one, so that
    the bounds of every single sentence rise with k, and not only their means. Draws are not stored;
    only a running log-sum for each k is.

    Args:
      model: the model; its latent must have a density.
      texts: held-out sentences.
      draws: the largest k, 1 to 9 or a multiple of the powers of ten below it.
      seed: of the draws.

    Returns:
      k -> float64 nats, shape (len(texts),). IWAE_1 is the ELBO over `draws` draws.

    Raises:
      ValueError: a smaller k does not divide `draws`, or the latent has no density.

    Source: Burda et al. (2016).

    >>> bounds = importance_bounds(model, texts, draws=10)
    >>> sorted(bounds), bool((bounds[10] >= bounds[1]).all())
    ([1, 10], True)
    """
    sizes = group_sizes(draws)
    if not is_variational(model):
        raise ValueError(
            f"the kind {model.architecture.kind} has no density; wanted a variational latent"
        )
    rows = model.tokenize(texts)
    chunk = math.gcd(draws, DRAWS)
    run = model.compiled(log_importance_weights, draws=chunk)
    found = {k: np.zeros(len(rows)) for k in sizes}
    for part, tokens, mask in model.batches(rows, bar=False):
        groups = {k: RunningMean(k, len(part)) for k in sizes}
        times = draws // chunk
        for i in track(range(times), "draws", total=times, unit=f"x {chunk}", least=20):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), part[0]), i)
            weights, present = jax.device_get(run(model.params, tokens, mask, key))
            log_count = log_count_probability(model.count_probabilities, present[: len(part)])
            for each in weights[:, : len(part)].astype(np.float64) + log_count:
                for group in groups.values():
                    group.add(each)
        for k, group in groups.items():
            found[k][part] = group.mean()
    return found


def log_importance_weights(
    model: NVAE, tokens: jax.Array, mask: jax.Array, key: jax.Array, *, draws: int
) -> tuple[jax.Array, jax.Array]:
    """(`log p(x|F_j) p(F_j) / q(F_j|x)` (draws, B), number of present vectors (B,)).

    The texts are encoded once for all draws.
    """
    posterior = model.encode(tokens, mask)
    inputs, targets, counted = decoder_io(tokens, mask, model.special)

    def one(_, draw_key: jax.Array) -> tuple[None, jax.Array]:
        mixture = model.draw(posterior, draw_key)
        logits = model.decode(model.memories(mixture, "exact"), inputs)
        ratio = model.latent.log_density_ratio(mixture, posterior)
        return None, log_likelihood(logits, targets, counted) + ratio

    weights = jax.lax.scan(one, None, jax.random.split(key, draws))[1]
    return weights, vectors_present(posterior)


class RunningMean:
    """For each sentence, the mean over groups of `size` draws of the log of a group's mean weight.

    Draws are added one at a time and not stored.
    """

    def __init__(self, size: int, count: int):
        self.size, self.seen = size, 0
        self.log_sum, self.total = np.full(count, -np.inf), np.zeros(count)

    def add(self, log_weight: np.ndarray) -> None:
        """Add one draw of every sentence, nats, (count,)."""
        self.log_sum = np.logaddexp(self.log_sum, log_weight)
        self.seen += 1
        if self.seen % self.size == 0:
            self.total += self.log_sum - math.log(self.size)
            self.log_sum = np.full_like(self.log_sum, -np.inf)

    def mean(self) -> np.ndarray:
        """The mean over all complete groups, (count,)."""
        return self.total / (self.seen // self.size)


def group_sizes(draws: int) -> list[int]:
    """The k of `importance_bounds`: 1, 10, 100 ... and `draws`, each a divisor of the next."""
    smaller = [10**i for i in range(10) if 10**i < draws]
    largest = smaller[-1] if smaller else 1
    if draws < 1 or draws % largest:
        raise ValueError(f"draws is {draws}; wanted 1 to 10 or a multiple of {largest}")
    return [*smaller, draws]


def held_out_terms(model: TextModel, texts: Sequence[str], *, seed: int = 0) -> dict[str, float]:
    """What training measures, on held-out texts: the only figures of a model of any family.

    Args:
      model: of any family.
      texts: held-out sentences.
      seed: of draws.

    Returns:
      "cross_entropy" in nats a target, and the means of the model's own metrics
      (`nvib_jax.models.terms.Terms`), without dropout.

    >>> sorted(held_out_terms(model, texts))
    ['cross_entropy', 'kl_dirichlet', 'kl_gaussian', 'share_kept']
    """
    run = model.compiled(_terms, objective=model.config.objective)
    sums: Any = None
    for part, tokens, mask in model.batches(model.tokenize(texts)):
        key = jax.random.fold_in(jax.random.key(seed), int(part[0]))
        found = run(model.params, tokens, mask, key)
        sums = found if sums is None else jax.tree.map(jnp.add, sums, found)
    return {name: float(a) / max(float(b), 1.0) for name, (a, b) in jax.device_get(sums).items()}


def _terms(model: Any, tokens: jax.Array, mask: jax.Array, key: jax.Array, *, objective: Any):
    batch = {"tokens": tokens, "mask": mask}
    terms = model.terms(batch, key, step=jnp.int32(0), train=False, objective=objective)
    return {"cross_entropy": (terms.nll, terms.counted), **terms.metrics}


def is_variational(model: TextModel) -> bool:
    """Whether the latent has a density, so that there is a bound."""
    return LATENTS[model.architecture.kind].variational


def token_counts(model: TextModel, texts: Sequence[str]) -> np.ndarray:
    """Number of tokens of each text plus one for end-of-sentence, float64."""
    return np.array([len(row) + 1.0 for row in model.tokenize(texts)])


def ratio(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """(sum of values / sum of counts, its standard error over sentences)."""
    mean = float(values.sum() / counts.sum())
    return mean, standard_error(values - mean * counts) / float(counts.mean())


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean; nan for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
