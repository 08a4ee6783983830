"""The training state and its step: batch -> terms -> loss -> gradients -> new state.

Metrics leave the step as (sum, count) pairs, so that those of many steps or processes add up
exactly, and nobody waits for the device until a metric is printed.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nvib_jax.config import ObjectiveConfig
from nvib_jax.models.params import Params, merge
from nvib_jax.models.terms import Batch, Metrics
from nvib_jax.training.loss import loss_and_metrics


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes: step (), parameters, optimiser state, the loss's running
    mean ().
    """

    step: jax.Array
    params: Params
    opt_state: Any
    average_loss: jax.Array

    @property
    def items(self) -> dict[str, Any]:
        """What a checkpoint saves: "params", and all else as "optimizer"."""
        return {
            "params": self.params,
            "optimizer": {name: value for name, value in vars(self).items() if name != "params"},
        }

    @classmethod
    def of_items(cls, items: dict[str, Any]) -> "TrainState":
        """The inverse of `items`."""
        return cls(params=items["params"], **items["optimizer"])

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.int32(0), params, optimizer.init(params), jnp.float32(0))


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: ObjectiveConfig,
    *,
    accumulate: int = 1,
    spike: float = 0.0,
    shardings: tuple[Any, Any] | None = None,
) -> jax.stages.Wrapped:
    """The jitted step, `(state, batch, key) -> (state, metrics)`; the state's buffers are donated.

    The key of step t is `fold_in(key, t)`, so that a resumed run draws what an uninterrupted one
    would have drawn. A bad step has a loss or gradient that is not finite, or a spike. It counts as
    a step but changes neither parameters nor optimiser; its metrics are 0 except "bad_steps".

    Args:
      graph: the module's structure.
      optimizer: from `make_optimizer`.
      objective: the loss.
      accumulate: number of parts of a batch, processed one after another; B must be a multiple.
      spike: a loss above this many times its running mean is a spike; 0 turns this off.
      shardings: of the state and of the metrics; None leaves them to jax.
    """

    def gradient(params: Params, batch: Batch, key: jax.Array, step: jax.Array, whole: jax.Array):
        def loss(params: Params):
            model = merge(graph, params)
            return loss_and_metrics(model, batch, key, step, objective, whole=whole)

        return jax.grad(loss, has_aux=True)(params)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        if accumulate == 1:
            grads, metrics = gradient(state.params, batch, key, state.step, batch["mask"])
        else:
            parts = jax.tree.map(lambda x: _in_parts(x, accumulate), batch)
            keys = jax.random.split(key, accumulate)

            def part(total: Any, x: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                found = gradient(state.params, *x, state.step, batch["mask"])
                return jax.tree.map(jnp.add, total, found), None

            like = jax.eval_shape(lambda: gradient(
                state.params, jax.tree.map(lambda x: x[0], parts), key, state.step, batch["mask"]
            ))  # fmt: skip
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
            (grads, metrics), _ = jax.lax.scan(part, zeros, (parts, keys))
            metrics["loss"] = (metrics["loss"][0], jnp.ones((), jnp.int32))
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        one, loss = jnp.ones((), jnp.int32), metrics["loss"][0]
        metrics["gradient_norm"] = (optax.tree.norm(grads), one)
        average = jnp.where(state.average_loss == 0, loss, state.average_loss)
        fine = jnp.isfinite(loss) & jnp.isfinite(metrics["gradient_norm"][0])
        if spike:
            fine &= loss <= spike * average
        new = TrainState(state.step, params, opt_state, average + 0.02 * (loss - average))
        new = jax.tree.map(lambda new, old: jnp.where(fine, new, old), new, state)
        metrics = jax.tree.map(lambda x: jnp.where(fine, x, jnp.zeros_like(x)), metrics)
        metrics["bad_steps"] = ((~fine).astype(jnp.float32), one)
        return dataclasses.replace(new, step=state.step + 1), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=shardings)


def _in_parts(x: jax.Array, count: int) -> jax.Array:
    """(B, ...) -> (count, B / count, ...); neighbours go to different parts.

    A device of a mesh holds neighbouring rows, so in this way it has an equal share of every part.
    """
    return jnp.swapaxes(jnp.reshape(x, (-1, count, *x.shape[1:])), 0, 1)


def add_metrics(a: Metrics | None, b: Metrics) -> Metrics:
    """The sum of two metrics; it stays on the device."""
    return b if a is None else jax.tree.map(jnp.add, a, b)


def means(metrics: Metrics) -> dict[str, float]:
    """The means sum / count as floats. This is the one place that waits for the device."""
    host = jax.device_get(metrics)
    return {name: float(total) / max(float(count), 1.0) for name, (total, count) in host.items()}
