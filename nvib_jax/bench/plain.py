"""Plain versions for `nvib bench` to compare with: the equations on whole tensors, no shortcuts.

They use the library's parameters but none of its optimisations. Draw, loss and step are written out
here on purpose, so that they do not change when the library does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from nvib_jax.attention import denoising_attention
from nvib_jax.kl import kl_dirichlet, kl_gaussian
from nvib_jax.models.nvae import NVAE, NVAEConfig
from nvib_jax.models.params import Params, merge
from nvib_jax.models.special_ids import BOS, PAD
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.modules.attention import DenoisingAttention, SelfAttention
from nvib_jax.modules.linear import Linear
from nvib_jax.objective import published_scale
from nvib_jax.training.step import TrainState
from nvib_jax.types import Mixture, Posterior


def attention(
    query: jax.Array,
    mixture: Mixture,
    *,
    key_kernel: jax.Array,
    value_kernel: jax.Array,
    form: str,
) -> jax.Array:
    """Denoising attention with whole [B, T, H, D] queries and [B, H, T, S] weights.

    It takes the arguments of `nvib_jax.denoising_attention`, but no mask other than the mixture's.
    Products have the default precision; biases and softmax are float32. For impulses, terms that
    are zero are skipped.

    Returns:
      shape (B, T, H, E).
    """
    dtype, root = query.dtype, float(query.shape[-1]) ** 0.5
    mean, s2, total, bias = _statistics(mixture, root, form)
    keys = jnp.einsum("bsd,dhe->bshe", (mean / total).astype(dtype), key_kernel)
    values = jnp.einsum("bsd,dhe->bshe", (root * mean / total).astype(dtype), value_kernel)
    logits = jnp.einsum("bthe,bshe->bhts", query, keys).astype(jnp.float32)
    if s2 is not None:
        u = jnp.einsum("bthe,dhe->bthd", query, key_kernel)
    if s2 is not None and form == "exact":
        square = jnp.einsum("bthd,bsd->bhts", u * u, (-0.5 / total).astype(dtype))
        logits = logits + square.astype(jnp.float32)
    shares = jax.nn.softmax(logits + bias[:, None, None], -1).astype(dtype)
    out = jnp.einsum("bhts,bshe->bthe", shares, values)
    if s2 is not None:
        # The order is "bhtd" and not "bthd", because XLA on CPUs lacks that product in bfloat16.
        kept = jnp.einsum("bhts,bsd->bhtd", shares, (s2 / total).astype(dtype))
        out = out + jnp.einsum("bthd,dhe->bthe", jnp.swapaxes(kept, 1, 2) * u, value_kernel)
    return out


def _statistics(
    mixture: Mixture, root: float, form: str
) -> tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]:
    """(means, variances or None if the form needs none, variances + sqrt(E), bias of each key)."""
    mean, weights = mixture.mean.astype(jnp.float32), mixture.log_weights.astype(jnp.float32)
    s2 = None
    if mixture.log_variance is not None:
        s2 = jnp.exp(mixture.log_variance.astype(jnp.float32))
    if form == "expected_logit" and s2 is not None:
        weights, s2 = weights - jnp.sum(s2, -1) / (2 * root), None
    total = jnp.full_like(mean, root) if s2 is None else s2 + root
    bias = weights - 0.5 * jnp.sum(mean * mean / total, -1)
    if form in ("exact", "published"):
        bias = bias - 0.5 * jnp.sum(jnp.log(total), -1)
    bias = jnp.where(mixture.mask, bias, -1e30)
    return mean, s2 if form in ("exact", "published") else None, total, bias


class PlainAttention(DenoisingAttention):
    """The layer with the reference attention, which computes keys and values again in each call."""

    def memory(self, mixture: Mixture, form: str) -> Any:
        """The mixture itself."""
        return mixture, form

    def __call__(self, x: jax.Array, memory: Any, *, causal: bool = False) -> jax.Array:
        """Attend from x, shape (B, T, D), to a mixture; returns (B, T, D)."""
        mixture, form = memory
        query = self.query(x).reshape(*x.shape[:2], self.heads, -1)
        out = denoising_attention(
            query,
            mixture,
            key_kernel=self.key_kernel[...],
            value_kernel=self.value_kernel[...],
            form=form,
            causal=causal,
            implementation="reference",
        )
        return self.out(out.reshape(x.shape))


class PlainSelfAttention(SelfAttention):
    """The layer with jax's own attention."""

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x (B, N, D), mask (B, N) or None for causal -> (B, N, D)."""
        q, k, v = self._heads(x)
        seen = None if mask is None else mask[:, None, None, :]
        with jax.numpy_dtype_promotion("standard"):  # jax's attention promotes bfloat16 implicitly
            out = jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=mask is None)
        return self.out(out.reshape(x.shape))


def model(config: NVAEConfig, *, vocab_size: int, max_length: int) -> NVAE:
    """An NVAE of Flax's and jax's own parts; its parameters have the library's names."""
    plain = NVAE(config, vocab_size=vocab_size, max_length=max_length, rngs=nnx.Rngs(0))
    swapped: dict[type, Any] = {Linear: nnx.Linear, SelfAttention: PlainSelfAttention}
    for _, module in nnx.iter_modules(plain):
        module.__class__ = swapped.get(type(module), type(module))
    for layer in plain.decoder.layers:
        layer.latent_attention = PlainAttention(
            config.dim, config.latent_heads, dtype=jnp.dtype(config.dtype), rngs=nnx.Rngs(0)
        )
    return plain


def draw(posterior: Posterior, key: jax.Array) -> Mixture:
    """One draw per component; gammas by `jax.random.loggamma` of alpha + 1 (Marsaglia & Tsang).

    The boost to alpha is written out as exponential / alpha, because jax's own loggamma loses this
    part of the gradient if alpha is small.
    """
    gamma_key, boost_key, noise_key = jax.random.split(key, 3)
    kept = posterior.present
    alpha = jnp.exp(jnp.where(kept, posterior.log_alpha, 0.0))
    boost = jax.random.exponential(boost_key, alpha.shape, jnp.float32) / alpha
    log_x = jnp.where(kept, jax.random.loggamma(gamma_key, alpha + 1.0) - boost, -1e30)
    noise = jax.random.normal(noise_key, posterior.mean.shape, jnp.float32)
    return Mixture(
        mean=posterior.mean + jnp.exp(0.5 * posterior.log_variance) * noise,
        log_variance=None,
        log_weights=jnp.where(kept, jax.nn.log_softmax(log_x, axis=-1), -jnp.inf),
        mask=posterior.mask,
    )


def loss(
    model: NVAE,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    lambda_gaussian: float = 1e-3,
    lambda_dirichlet: float = 1.0,
) -> jax.Array:
    """The published objective of a batch, whole [B, T, V] logits.

    Args:
      model: from `model`.
      batch: "tokens" int (B, N) and "mask" bool (B, N), without rows that are all padding.
      key: PRNG key of the step.
      lambda_gaussian: weight of KL_G / (S D).
      lambda_dirichlet: weight of KL_D / S.

    Returns:
      shape (): nats per token + weighted KLs, mean over sentences.
    """
    encode_key, draw_key, decode_key = jax.random.split(key, 3)
    tokens, mask = batch["tokens"], batch["mask"]
    inputs, targets, counted = decoder_io(tokens, mask, model.special)
    posterior = model.encode(tokens, mask, encode_key)
    memories = model.memories(draw(posterior, draw_key), "exact")
    logits = model.decode(memories, inputs, decode_key)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    cross_entropy = jnp.sum(jnp.where(counted, nll, 0.0)) / jnp.sum(counted).astype(jnp.float32)
    prior, components = model.latent.prior, jnp.sum(posterior.mask, axis=-1)
    kl_g = published_scale(kl_gaussian(posterior, prior), components, model.config.dim)
    kl_d = published_scale(kl_dirichlet(posterior, prior), components)
    return cross_entropy + jnp.mean(lambda_gaussian * kl_g + lambda_dirichlet * kl_d)


def make_step(
    graph: nnx.GraphDef, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, dict[str, jax.Array], jax.Array], tuple[TrainState, jax.Array]]:
    """The jitted step of `loss`; the state is donated."""

    def step(state: TrainState, batch: dict[str, jax.Array], key: jax.Array):
        step_key = jax.random.fold_in(key, state.step)

        def of_params(params: Params) -> jax.Array:
            return loss(merge(graph, params), batch, step_key)

        value, grads = jax.value_and_grad(of_params)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.average_loss), value

    return jax.jit(step, donate_argnums=0)


def decode_by_prefix(
    model: NVAE, mixture: Mixture, *, form: str, length: int, last_only: bool
) -> jax.Array:
    """Greedy decoding that runs the decoder on the whole padded prefix at every step.

    Args:
      model: the module.
      mixture: B mixtures.
      form: form of attention.
      length: tokens to write; it does not stop at an end-of-sentence.
      last_only: compute logits only for the current position; otherwise for all, as `decode` does.

    Returns:
      int32 ids, shape (B, length).
    """
    memories = model.memories(mixture, form)
    forbidden = jnp.array([PAD, BOS])

    def step(position: jax.Array, ids: jax.Array) -> jax.Array:
        if last_only:
            states = model._decode(memories, ids[:, :-1], None)
            state = jax.lax.dynamic_slice_in_dim(states, position, 1, axis=1)
            now = model._logits(state)[:, 0]
        else:
            logits = model.decode(memories, ids[:, :-1])
            now = jax.lax.dynamic_index_in_dim(logits, position, axis=1, keepdims=False)
        token = jnp.argmax(now.at[:, forbidden].set(-jnp.inf), axis=-1).astype(jnp.int32)
        return jax.lax.dynamic_update_index_in_dim(ids, token, position + 1, axis=1)

    start = jnp.full((mixture.mean.shape[0], length + 1), PAD, jnp.int32).at[:, 0].set(BOS)
    return jax.lax.fori_loop(0, length, step, start)[:, 1:]
