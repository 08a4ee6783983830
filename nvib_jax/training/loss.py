"""The training loss: a model's terms, weighed by the objective."""

import functools
import operator

import jax
import jax.numpy as jnp

from nvib_jax.config import Config, ObjectiveConfig
from nvib_jax.models.config import NVAEConfig
from nvib_jax.models.terms import Batch, Metrics, Model
from nvib_jax.objective import anneal, budget, elbo_weights, published_scale


def loss_and_metrics(
    model: Model,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    objective: ObjectiveConfig,
    *,
    train: bool = True,
    whole: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The training loss of a batch.

    Args:
      model: the module.
      batch: "tokens" int (B, N) and "mask" bool (B, N); a row that is all padding does not count.
      key: PRNG key of the step.
      step: optimiser step, for annealing.
      objective: weights, units, forms.
      train: whether the model uses dropout and noise.
      whole: if this is one part of a batch, the mask of the whole batch. The loss is then divided
        by its counts, so that the losses of the parts add up to the loss of the batch.

    Returns:
      (loss (), metrics): nats per token and per sentence, and what the model measures of itself.
    """
    terms = model.terms(batch, key, step=step, train=train, objective=objective)
    tokens = jnp.sum(batch["mask"], axis=-1)
    sentences, targets = _counts(batch["mask"] if whole is None else whole)
    loss = terms.nll / jnp.maximum(targets, 1).astype(jnp.float32)
    if terms.costs:
        costs = weighted(terms.costs, tokens, step, objective, width=terms.width)
        total = targets if objective.units == "elbo" else sentences
        loss = loss + jnp.sum(costs) / jnp.maximum(total, 1).astype(jnp.float32)
    return loss, {
        "loss": (loss, jnp.ones((), jnp.int32)),
        "cross_entropy": (terms.nll, terms.counted),
        **terms.metrics,
    }


def weighted(
    costs: dict[str, jax.Array],
    tokens: jax.Array,
    step: jax.Array,
    objective: ObjectiveConfig,
    *,
    width: int = 1,
) -> jax.Array:
    """What the loss charges each sentence at a step, (B,).

    Args:
      costs: name -> (B,), as `nvib_jax.models.terms.Terms` has them; at least one.
      tokens: valid tokens of each sentence, (B,).
      step: optimiser step.
      objective: weights, budgets and schedules.
      width: D, by which the published units divide the Gaussian KL.
    """
    o = objective
    factor = anneal(
        step, schedule=o.anneal, start=o.anneal_start, steps=o.anneal_steps, cycle=o.anneal_cycle
    )
    grown = anneal(step, schedule="linear", steps=o.capacity_steps)

    def charge(name: str, cost: jax.Array) -> jax.Array:
        weight: float | jax.Array = 1.0
        free, capacity, divisor = 0.0, None, None
        match name.partition("/")[0]:
            case "gaussian":
                weight, divisor = factor * o.lambda_gaussian, width
                free, capacity = o.free_gaussian, o.capacity_gaussian
            case "dirichlet":
                annealed = jnp.ones_like(factor) if o.dirichlet_from_start else factor
                weight = annealed * o.lambda_dirichlet
                free, capacity = o.free_dirichlet, o.capacity_dirichlet
            case "vectors":
                weight, free = o.vector_price, o.free_vectors
            case "mmd":
                return o.lambda_mmd * cost
            case "sliced":
                return o.lambda_sliced * cost
            case _:
                return cost
        held = None if capacity is None else capacity * grown
        cost = budget(cost, tokens, free=free, capacity=held)
        # S is the sentence's tokens plus the prior's component, even if the latent has fewer
        # vectors.
        published = o.units == "published"
        return weight * (published_scale(cost, tokens + 1, divisor) if published else cost)

    return functools.reduce(operator.add, (charge(name, cost) for name, cost in costs.items()))


def _counts(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sentences, tokens with one end-of-sentence for each), by which the loss is divided."""
    sentences = jnp.sum(jnp.any(mask, axis=-1))
    return sentences, jnp.sum(mask) + sentences


def effective_weights(config: Config) -> list[str]:
    """A line with the weights of KL_G and KL_D relative to the ELBO's, after annealing.

    There is none for a model that is no NVAE, because its costs are its own.
    """
    if not isinstance(config.model, NVAEConfig):
        return []
    weights = config.objective.lambda_gaussian, config.objective.lambda_dirichlet
    if config.objective.units == "published":
        weights = elbo_weights(*weights, config.model.width)
    return [
        f"effective weights, where the ELBO has 1: KL_G {weights[0]:.3g}, KL_D {weights[1]:.3g}"
    ]
