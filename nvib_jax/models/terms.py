"""What training asks of a model: the terms of its loss.

A model of any family has one method, `terms`. The training step weighs and adds what it returns,
and knows nothing else about the model.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol

import jax

Batch = dict[str, Any]  # "tokens" int (B, N) and "mask" bool (B, N), True = a valid token
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, count), which add up over batches


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Terms:
    """The terms of the loss of a batch, before they are weighed.

    Attributes:
      nll: negative log-likelihood, summed over the counted targets, float32 nats, shape ().
      counted: how many targets count, int, shape ().
      costs: name -> what the loss charges besides, nats or the cost's own unit, each float32 (B,).
        "gaussian", "dirichlet", "vectors", "mmd" and "sliced" have their weights, and some budgets
        and schedules, in `ObjectiveConfig`; "gaussian/3" is weighed as "gaussian", so that a model
        may have several posteriors. A cost of any other name has weight 1: a model that brings a
        cost of its own weighs it by its own config.
      metrics: name -> (sum, count), for the log.
      width: D of the latent vectors, by which the published units divide the Gaussian KL.
    """

    nll: jax.Array
    counted: jax.Array
    costs: dict[str, jax.Array]
    metrics: Metrics
    width: int = dataclasses.field(default=1, metadata={"static": True})


class Model(Protocol):
    """A module that can be trained; `nvib_jax.models.build` makes it from its config."""

    def terms(
        self, batch: Batch, key: jax.Array, *, step: jax.Array, train: bool, objective: Any
    ) -> Terms:
        """The terms of the loss of a batch.

        Args:
          batch: "tokens" int (B, N) and "mask" bool (B, N); a row that is all padding must cost 0.
          key: PRNG key of the step.
          step: optimiser step, for schedules inside the model.
          train: whether to use dropout and noise.
          objective: an `nvib_jax.config.ObjectiveConfig`, for the forms of the divergences.
        """
        ...
