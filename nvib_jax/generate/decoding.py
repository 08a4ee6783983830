"""Cached decoding: from a mixture, a text or the prior to token ids.

Nothing is recomputed for the prefix: keys and values of self-attention are cached, and those of the
mixture are computed once. One compiled step serves every position, and the loop ends when every
sentence has ended. Beam search is in `nvib_jax.generate.beam`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nvib_jax.attention import Memory
from nvib_jax.fields import check_fields
from nvib_jax.generate.beam import beam_search, forbid
from nvib_jax.generate.beam import top_k as largest
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.types import Mixture

Method = Literal["greedy", "sample", "beam"]


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the tokens are chosen."""

    method: Method = "greedy"
    """greedy takes the likeliest token; sample draws, within top_k and top_p if given; beam looks
    for the likeliest sentence."""
    temperature: float = 1.0
    """Logits are divided by this before sampling."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that hold this much probability."""
    beams: int = 4
    """Prefixes of a sentence that beam search follows."""
    length_penalty: float = 0.0
    """Beam search ranks sentences by log p / ((5 + length) / 6)^this; 0 is log p."""

    def __post_init__(self) -> None:
        check_fields(self, "decoding")
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature, top_k, top_p are {self.temperature}, {self.top_k}, {self.top_p}; "
                "wanted temperature > 0, top_k >= 0, 0 < top_p <= 1"
            )
        if self.beams < 1 or self.length_penalty < 0:
            raise ValueError(
                f"beams, length_penalty are {self.beams}, {self.length_penalty}; "
                "wanted beams >= 1, length_penalty >= 0"
            )


def filter_logits(logits: jax.Array, *, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """-inf outside the `top_k` likeliest tokens and outside the `top_p` nucleus.

    Args:
      logits: shape (B, V).
      top_k: 0 means all; ties with the k-th are kept.
      top_p: 1 means all. The token with which the mass reaches `top_p` is kept, so that there is
        always at least one.

    Returns:
      shape (B, V).
    """
    if 0 < top_k < logits.shape[-1]:
        least = largest(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p < 1.0:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(shares, axis=-1) - shares
        least = jnp.min(jnp.where(before < top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def likeliest(logits: jax.Array) -> jax.Array:
    """The first largest entry of each row: logits (B, V) -> int32 (B,)."""
    # This is argmax as two reductions (max, then min of the ids). On CPUs they take an eighth of
    # argmax's time, because XLA compiles argmax to a scalar loop over (value, index) pairs.
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    first = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(first, ids, ids[-1]), axis=-1)


def choose(
    logits: jax.Array, key: jax.Array, config: DecodingConfig, special: SpecialIds
) -> jax.Array:
    """The next token of each row: logits (B, V) -> int32 (B,); never padding or beginning."""
    logits = forbid(logits, special.unwritable)
    if config.method == "greedy":
        return likeliest(logits)
    logits = filter_logits(logits / config.temperature, top_k=config.top_k, top_p=config.top_p)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def generate(
    model: NVAE,
    memories: tuple[Memory, ...],
    key: jax.Array,
    *,
    max_length: int,
    config: DecodingConfig | None = None,
    rows: int | None = None,
) -> jax.Array:
    """Decode every row of a batch of memories.

    Args:
      model: the module (merged inside jit).
      memories: from `model.memories`, B rows.
      key: PRNG key, used by sampling only.
      max_length: most tokens of a sentence without end-of-sentence; at most `model.max_length`.
      config: how tokens are chosen; None is greedy.
      rows: B, for a model that has no memories; None is that of the memories.

    Returns:
      int32 ids, shape (B, max_length): the sentence, then padding; no end-of-sentence.

    Raises:
      ValueError: `max_length` is more than the model has positions for, or there are more beams
        than tokens to choose from.
    """
    if not 1 <= max_length <= model.max_length:
        raise ValueError(f"max_length is {max_length}; wanted 1 to {model.max_length}")
    chosen = config or DecodingConfig()
    rows = memories[0].bias.shape[0] if rows is None else rows
    if chosen.method == "beam":
        ids, _ = beam_search(
            model,
            memories,
            max_length=max_length,
            beams=chosen.beams,
            length_penalty=chosen.length_penalty,
            kept=1,
            rows=rows,
        )
        return ids[:, 0]
    return _one_by_one(model, memories, key, max_length, chosen, rows)


def _one_by_one(
    model: NVAE,
    memories: tuple[Memory, ...],
    key: jax.Array,
    max_length: int,
    config: DecodingConfig,
    batch: int,
) -> jax.Array:
    """Greedy decoding and sampling, where a chosen token is never changed."""
    special = model.special

    def unfinished(carry) -> jax.Array:
        position, _, _, _, done = carry
        return (position < max_length) & ~jnp.all(done)

    def step(carry):
        position, token, caches, written, done = carry
        logits, caches = model.decode_step(memories, caches, token, position)
        token = choose(logits, jax.random.fold_in(key, position), config, special)
        done = done | (token == special.eos)
        token = jnp.where(done, special.pad, token)
        written = jax.lax.dynamic_update_index_in_dim(written, token, position, axis=1)
        return position + 1, token, caches, written, done

    start = (
        jnp.int32(0),
        jnp.full((batch,), special.bos, jnp.int32),
        model.empty_caches(batch, max_length),
        jnp.full((batch, max_length), special.pad, jnp.int32),
        jnp.zeros((batch,), bool),
    )
    return jax.lax.while_loop(unfinished, step, start)[3]


def token_key(key: jax.Array) -> jax.Array:
    """The key for a text's tokens, given the `key` that draws the mixture which they are read from.

    With `key` for both, the first token's noise would be the noise of the mixture's first weights,
    so the two would be correlated. The key returned differs from every child that a `split` of
    `key` gives, because `split(key, n)[i]` is `fold_in(key, i)` and no n exceeds 2^31.
    """
    return jax.random.fold_in(key, 1 << 31)


def write(model: NVAE, mixture: Mixture, key: jax.Array, *, form: str, **how: Any) -> jax.Array:
    """Mixture -> ids (B, max_length). `key` may be the one that the mixture was drawn with."""
    return generate(model, model.memories(mixture, form), token_key(key), **how)


def rewrite(
    model: Any,
    tokens: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    keep: jax.Array | None = None,
    *,
    form: str | None,
    **how: Any,
) -> jax.Array:
    """Ids -> what the model keeps of them, `keep` at most -> ids (B, max_length)."""
    memories = model.remember(tokens, mask, key, keep, form=form)
    return generate(model, memories, token_key(key), **how)


def write_prior(model: Any, lengths: jax.Array, key: jax.Array, **how: Any) -> jax.Array:
    """Numbers of vectors (B,) -> mixtures drawn from the prior -> ids (B, max_length)."""
    mixture_key, tokens_key = jax.random.split(key)
    memories = model.prior_memories(lengths, mixture_key)
    return generate(model, memories, tokens_key, rows=lengths.shape[0], **how)
