"""The loss on held-out sentences that a run watches, and by which its checkpoints are ranked."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.config import Config
from nvib_jax.data import PreparedData
from nvib_jax.models.params import Params, merge
from nvib_jax.models.terms import Metrics
from nvib_jax.training.feed import arrays_of, open_batches
from nvib_jax.training.loss import loss_and_metrics
from nvib_jax.training.sharding import batch_placer, whole
from nvib_jax.training.step import add_metrics, means


def make_validation(
    config: Config, graph: nnx.GraphDef, data: PreparedData, mesh: jax.sharding.Mesh
) -> Callable[[Params], dict[str, float]]:
    """A function params -> metrics on held-out sentences.

    It has no dropout, the KLs at full weight, and the same random draws in every call.
    """
    objective = dataclasses.replace(config.objective, anneal="constant")
    batches = open_batches(config, data, mesh, data.held_out, shuffle=False)
    place = batch_placer(mesh, config.data.batch_size)
    count = min(len(batches), -(-config.train.eval_sentences // config.data.batch_size))
    # The batches are in order of length; evenly spaced ones represent every length.
    chosen = np.linspace(0, len(batches) - 1, count).astype(int)

    @functools.partial(jax.jit, out_shardings=whole(mesh))
    def measure(params: Params, batch: Any, key: jax.Array) -> Metrics:
        still = merge(graph, params)
        return loss_and_metrics(still, batch, key, jnp.int32(0), objective, train=False)[1]

    def part(params: Params, i: int) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.train.seed), i)
        return measure(params, place(arrays_of(batches[i])), key)

    def validate(params: Params) -> dict[str, float]:
        return means(functools.reduce(add_metrics, (part(params, i) for i in chosen)))

    return validate
