"""Training of a model's weights on texts, or on texts and their targets, by maximum likelihood.

It makes the small models that the out-of-domain experiments regularise, and is the first part of
fine-tuning. Any downloaded model can be trained further by it, if it fits one device.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvib_jax.fields import check_fields
from nvib_jax.models.params import Params, merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.batches import Batch, padded
from nvib_jax.pretrained.model import PretrainedModel, digest_of, states_of
from nvib_jax.progress import track


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """An optimiser's run."""

    steps: int = 2000
    """Optimiser steps."""
    batch_size: int = 64
    """Texts in a batch."""
    learning_rate: float = 1e-3
    """Peak learning rate, after a warm-up of a tenth and before a cosine decay to 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Most norm of the gradient."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over the vocabulary."""
    seed: int = 0
    """Of dropout and of the order of the texts."""

    def __post_init__(self) -> None:
        check_fields(self, "training")
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} is {getattr(self, name)}; wanted at least 1")


def train(
    model: PretrainedModel,
    texts: Sequence[str],
    targets: Sequence[str] | None = None,
    config: TrainingConfig | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> PretrainedModel:
    """The model with its weights trained further on these texts.

    Args:
      model: of one or two stacks; it is not changed.
      texts: to continue, or to read where there are targets.
      targets: to write; for models of two stacks.
      config: None is `TrainingConfig()`.
      say: called with a line of text, ten times.

    Raises:
      ValueError: a model that fills gaps, or texts that do not fit.
    """
    about, c, report = model.architecture, config or TrainingConfig(), say or (lambda line: None)
    if about.kind == "masked":
        raise ValueError(f"a {about.family} model fills gaps; training it is not implemented")
    rows, others = model.rows(texts, targets)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, max(c.steps // 10, 1), c.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(schedule, b2=0.98, weight_decay=c.weight_decay, mask=is_matrix),
    )
    graph = model.graph

    @jax.jit
    def step(params: Params, state, index, batch: Batch):
        key = jax.random.fold_in(jax.random.key(c.seed), index)

        def loss(params: Params) -> jax.Array:
            module = merge(graph, params)
            view = View(key=key, rate=about.dropout)
            states, wanted, counted = states_of(module, batch, view)
            log_p = jax.nn.log_softmax(module.logits(states), axis=-1)
            nats = -jnp.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
            smooth = -jnp.mean(log_p, axis=-1)
            nats = (1 - c.label_smoothing) * nats + c.label_smoothing * smooth
            return jnp.sum(jnp.where(counted, nats, 0.0)) / jnp.sum(counted, dtype=jnp.float32)

        value, grads = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = model.params, optimizer.init(model.params), []
    stream = endless(rows, others, c, about.pad)
    for index in track(range(c.steps), "training", total=c.steps, unit="steps"):
        params, state, value = step(params, state, np.int32(index), next(stream))
        losses.append(value)
        if (index + 1) % max(c.steps // 10, 1) == 0:
            mean = np.mean(jax.device_get(losses))
            report(f"step {index + 1:,}: {mean:.4f} nats a token in training")
            losses.clear()
    return dataclasses.replace(model, params=params, digest=digest_of(params))


def is_matrix(params: Params) -> dict[str, bool]:
    """Weight decay is for matrices; vectors are biases and norms."""
    return {name: param.ndim > 1 for name, param in params.items()}


def endless(
    rows: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]] | None,
    config: TrainingConfig,
    pad: int,
) -> Iterator[Batch]:
    """Batches of epochs in random order, all of one shape, so that the step compiles once."""
    rng = np.random.default_rng(config.seed)
    width = max(map(len, rows))
    other = max(map(len, others)) if others is not None else 0
    left: list[int] = []
    while True:
        while len(left) < config.batch_size:
            left += rng.permutation(len(rows)).tolist()
        part, left = left[: config.batch_size], left[config.batch_size :]
        tokens = padded([rows[i] for i in part], width, len(part), pad)
        if others is None:
            yield Batch(*tokens)
        else:
            yield Batch(*tokens, *padded([others[i] for i in part], other, len(part), pad))
