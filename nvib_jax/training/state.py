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

from nvib_jax.config import ObjectiveConfig, TrainConfig
from nvib_jax.kl import vector_count
from nvib_jax.models.nvae import NVAE, PAD, UNK, decoder_io
from nvib_jax.models.params import Params, merge
from nvib_jax.objective import anneal, budget, published_scale

Metrics = dict[str, tuple[jax.Array, jax.Array]]
Batch = dict[str, Any]


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

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.int32(0), params, optimizer.init(params), jnp.float32(0))


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, the optimiser, warm-up and decay."""
    peak, decay = config.learning_rate, max(config.steps - config.warmup_steps, 1)
    after: optax.Schedule = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay, alpha=0.01),
        "linear": optax.linear_schedule(peak, 0.01 * peak, decay),
    }[config.schedule]
    warmup = optax.linear_schedule(0.0, peak, max(config.warmup_steps, 1))
    rate = optax.join_schedules([warmup, after], [config.warmup_steps])
    if config.optimizer == "adamw":
        # Only matrices decay; vectors (norms, biases, the prior) do not.
        def matrices(params: Params) -> dict[str, bool]:
            return {n: p.ndim > 1 and not n.endswith("bias") for n, p in params.items()}

        optimizer = optax.adamw(rate, b2=0.98, weight_decay=config.weight_decay, mask=matrices)
    else:
        optimizer = {"adam": optax.adam, "radam": optax.radam}[config.optimizer](rate)
    return optax.chain(optax.clip_by_global_norm(config.clip), optimizer)


def loss_and_metrics(
    model: NVAE,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    objective: ObjectiveConfig,
    *,
    train: bool = True,
    whole: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """The training loss of a batch, with one drawn mixture for each sentence.

    Args:
      model: the module.
      batch: "tokens" int (B, N) and "mask" bool (B, N); a row that is all padding does not count.
      key: PRNG key of the step.
      step: optimiser step, for annealing.
      objective: weights, units, forms.
      train: whether to use dropout, encoder noise and word dropout.
      whole: if this is one part of a batch, the mask of the whole batch. The loss is then divided
        by its counts, so that the losses of the parts add up to the loss of the batch.

    Returns:
      (loss (), metrics): nats per token and per sentence, shares of vectors.
    """
    encode_key, draw_key, decode_key, noise_key = jax.random.split(key, 4)
    tokens, mask = batch["tokens"], batch["mask"]
    inputs, targets, counted = decoder_io(tokens, mask)
    if train:
        blanks = jax.random.split(noise_key)
        tokens = _blank(tokens, objective.encoder_noise, blanks[0])
        inputs = inputs.at[:, 1:].set(_blank(inputs[:, 1:], objective.word_dropout, blanks[1]))
    else:
        encode_key = decode_key = None
    posterior = model.encode(tokens, mask, encode_key)
    memories = model.memories(model.draw(posterior, draw_key), "exact")
    nll = model.cross_entropy(memories, inputs, targets, counted, decode_key)

    real = jnp.any(mask, axis=-1)
    alpha_delta = _alpha_delta(step, objective, model.config.alpha_delta) if train else None
    kl_g, kl_d = model.latent.kl(
        posterior,
        gaussian_form=objective.gaussian_form,
        dirichlet_form=objective.dirichlet_form,
        alpha_delta=alpha_delta,
    )
    kl_g, kl_d = jnp.where(real, kl_g, 0.0), jnp.where(real, kl_d, 0.0)
    costs = penalty(kl_g, kl_d, mask, step, objective, dim=model.config.dim)
    if objective.vector_price:
        vectors = vector_count(posterior, num_samples=model.config.num_samples)
        vectors = budget(vectors, jnp.sum(mask, axis=-1), free=objective.free_vectors)
        vectors = jnp.where(real, vectors, 0.0)
        if objective.units == "published":
            vectors = published_scale(vectors, jnp.sum(posterior.mask, axis=-1))
        costs = costs + objective.vector_price * vectors

    all_sentences, all_tokens = _counts(mask if whole is None else whole)
    total = all_tokens if objective.units == "elbo" else all_sentences
    loss = nll / jnp.maximum(all_tokens, 1).astype(jnp.float32)
    loss = loss + jnp.sum(costs) / jnp.maximum(total, 1).astype(jnp.float32)
    sentences = jnp.sum(real)
    return loss, {
        "loss": (loss, jnp.ones((), jnp.int32)),
        "cross_entropy": (nll, jnp.sum(counted)),
        "kl_gaussian": (jnp.sum(kl_g), sentences),
        "kl_dirichlet": (jnp.sum(kl_d), sentences),
        "share_kept": count_kept(posterior, mask),
    }


def penalty(
    kl_gaussian: jax.Array,
    kl_dirichlet: jax.Array,
    mask: jax.Array,
    step: jax.Array,
    objective: ObjectiveConfig,
    *,
    dim: int,
) -> jax.Array:
    """The cost in the loss of each sentence's two KLs (B,) at a step, (B,); mask is (B, N)."""
    factor = anneal(
        step,
        schedule=objective.anneal,
        start=objective.anneal_start,
        steps=objective.anneal_steps,
        cycle=objective.anneal_cycle,
    )
    factor_d = jnp.ones_like(factor) if objective.dirichlet_from_start else factor
    grown = anneal(step, schedule="linear", steps=objective.capacity_steps)
    tokens = jnp.sum(mask, axis=-1)

    def cost(kl: jax.Array, free: float, capacity: float | None, width: int | None) -> jax.Array:
        held = None if capacity is None else capacity * grown
        kl = budget(kl, tokens, free=free, capacity=held)
        # S is the sentence's tokens plus the prior's component, even if the latent has fewer
        # vectors.
        return kl if objective.units == "elbo" else published_scale(kl, tokens + 1, width)

    o = objective
    gaussian = cost(kl_gaussian, o.free_gaussian, o.capacity_gaussian, dim)
    dirichlet = cost(kl_dirichlet, o.free_dirichlet, o.capacity_dirichlet, None)
    return factor * o.lambda_gaussian * gaussian + factor_d * o.lambda_dirichlet * dirichlet


def _alpha_delta(step: jax.Array, objective: ObjectiveConfig, last: float) -> jax.Array | None:
    first = objective.alpha_delta_start
    if first is None:
        return None
    reached = anneal(step, schedule="linear", steps=objective.alpha_delta_steps)
    return first + (last - first) * reached


def _blank(tokens: jax.Array, share: float, key: jax.Array) -> jax.Array:
    """Replace a random share of the words by UNK; padding stays."""
    if share == 0.0:
        return tokens
    blank = jax.random.bernoulli(key, share, tokens.shape) & (tokens != PAD)
    return jnp.where(blank, UNK, tokens)


def _counts(mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sentences, tokens with one end-of-sentence for each), by which the loss is divided."""
    sentences = jnp.sum(jnp.any(mask, axis=-1))
    return sentences, jnp.sum(mask) + sentences


def count_kept(posterior, mask: jax.Array, threshold: float = 0.1) -> tuple[jax.Array, jax.Array]:
    """(components kept, tokens), without the prior's component and padding; their ratio is a share.

    Kept means a pseudo-count above `threshold`; 0.1 is the published value. The second number is
    the tokens, even for a latent that pools them to fewer vectors.
    """
    above = posterior.log_alpha[:, 1:] > jnp.log(threshold)
    return jnp.sum(above & posterior.mask[:, 1:]), jnp.sum(mask)


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
