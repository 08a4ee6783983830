"""Beam search: the likeliest sentences of a memory among those that a beam of K prefixes finds.

The K prefixes of each sentence are K queries of one memory, which is never copied. The caches have
B*K rows and are re-ordered after every step. One compiled step serves every position. The rules are
the same for every K; with K = 1 and no penalty they are exactly greedy decoding:

- A step scores every continuation of every prefix. The K best continuations by a word are the next
  prefixes. A continuation by end-of-sentence makes a finished hypothesis if it is among the K best
  of all continuations.
- A hypothesis scores log p / ((5 + length) / 6)^penalty (Wu et al., 2016); its end-of-sentence
  counts in both. A prefix that reaches `max_length`, where greedy decoding stops too, is finished
  without an end-of-sentence.
- A sentence is done when no prefix can beat the worst hypothesis that is kept. log p only falls and
  the divisor is largest at `max_length`, so log p / ((5 + max_length) / 6)^penalty bounds the score
  that a prefix can still reach. So stopping early loses nothing, with any penalty >= 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nvib_jax.attention import Memory
from nvib_jax.attention.cache import take_rows
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.special_ids import SpecialIds


def forbid(logits: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """-inf at `tokens`, logits or log-probabilities of shape (..., V)."""
    forbidden = jnp.isin(
        jnp.arange(logits.shape[-1], dtype=jnp.int32), jnp.array(tokens, jnp.int32)
    )
    return jnp.where(forbidden, -jnp.inf, logits)


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k`: the k largest of each row, largest first, and their indices.

    The barrier keeps it fast on CPUs. XLA recognises a top-k as a sort followed by a slice of the
    first k. If a caller slices the result, XLA merges the two slices, no longer recognises it, and
    sorts the whole vocabulary, which takes ten times as long as the rest of a step.
    """
    values, index = jax.lax.optimization_barrier(jax.lax.top_k(values, k))
    return values, index


class _Hypotheses(NamedTuple):
    """Sentences and their scores, best first; a score of -inf marks an unused place."""

    scores: jax.Array  # float32 (B, P)
    tokens: jax.Array  # int32 (B, P, max_length), PAD after the sentence

    def best(self, other: "_Hypotheses") -> "_Hypotheses":
        """The best P of both. On a tie those of `self` win, so that later steps replace nothing."""
        scores, index = top_k(
            jnp.concatenate([self.scores, other.scores], axis=1), self.scores.shape[1]
        )
        tokens = jnp.concatenate([self.tokens, other.tokens], axis=1)
        return _Hypotheses(scores, _take(tokens, index))


class _State(NamedTuple):
    position: jax.Array  # int32 (), of the next token
    token: jax.Array  # int32 (B, K), the last token of every prefix
    caches: Any  # those of `NVAE.decode_step`, B*K rows
    prefixes: _Hypotheses  # K for each sentence; scores are log p, without a penalty
    finished: _Hypotheses
    done: jax.Array  # bool (B,), sentences whose hypotheses can no longer change


def beam_search(
    model: NVAE,
    memories: tuple[Memory, ...],
    *,
    max_length: int,
    beams: int,
    length_penalty: float = 0.0,
    kept: int | None = None,
    rows: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The best hypotheses of every row of a batch of memories.

    Args:
      model: the module (merged inside jit).
      memories: from `model.memories`, B rows.
      max_length: most tokens of a sentence without end-of-sentence; at most `model.max_length`.
      beams: K, prefixes of each sentence.
      length_penalty: 0 or more; 0 ranks by log p.
      kept: P, how many hypotheses to return; None is K. The best one is the same for every P, but
        a larger P takes more steps, because a sentence is done only when all P are final.
      rows: B, for a model that has no memories; None is that of the memories.

    Returns:
      (int32 ids, shape (B, P, max_length): the sentence, then PAD; float32 scores in nats over the
      penalty, shape (B, P)). Best first; all PAD with score -inf where there are fewer than P.

    Raises:
      ValueError: more beams than tokens to choose from.
    """
    batch = memories[0].bias.shape[0] if rows is None else rows

    def unfinished(state: _State) -> jax.Array:
        return (state.position < max_length) & ~jnp.all(state.done)

    def step(state: _State) -> _State:
        return _step(model, memories, state, max_length, length_penalty)

    start = _start(model, batch, max_length, beams, kept or beams)
    end = jax.lax.while_loop(unfinished, step, start)
    # The remaining prefixes are finished too. In a sentence that was done early this changes
    # nothing, because by the bound they score no higher than the hypotheses that are kept.
    cut = end.prefixes.scores / _divisor(max_length, length_penalty)
    found = end.finished.best(end.prefixes._replace(scores=cut))
    return found.tokens, found.scores


def _start(model: NVAE, batch: int, max_length: int, beams: int, kept: int) -> _State:
    def empty(count: int) -> _Hypotheses:
        return _Hypotheses(
            jnp.full((batch, count), -jnp.inf, jnp.float32),
            jnp.full((batch, count, max_length), model.special.pad, jnp.int32),
        )

    prefixes = empty(beams)
    # Only one prefix starts alive, the others score -inf, because K copies of the empty prefix
    # would produce every hypothesis K times.
    alone = prefixes._replace(scores=prefixes.scores.at[:, 0].set(0.0))
    return _State(
        position=jnp.int32(0),
        token=jnp.full((batch, beams), model.special.bos, jnp.int32),
        caches=model.empty_caches(batch * beams, max_length),
        prefixes=alone,
        finished=empty(kept),
        done=jnp.zeros((batch,), bool),
    )


def _step(
    model: NVAE, memories: tuple[Memory, ...], state: _State, max_length: int, penalty: float
) -> _State:
    """Extend every prefix by one token, and add the hypotheses that end here."""
    position, prefixes = state.position, state.prefixes
    logits, caches = model.decode_step(memories, state.caches, state.token, position)
    log_p, source, token, ends = _extend(prefixes.scores, logits, model.special)
    ended = prefixes._replace(scores=ends / _divisor(position + 1, penalty))
    finished = state.finished.best(ended)
    written = jax.lax.dynamic_update_index_in_dim(
        _take(prefixes.tokens, source), token, position, axis=2
    )
    batch, beams = source.shape
    rows = (jnp.arange(batch, dtype=jnp.int32)[:, None] * beams + source).reshape(-1)
    return _State(
        position=position + 1,
        token=token,
        caches=_reordered(caches, rows),
        prefixes=_Hypotheses(log_p, written),
        finished=finished,
        done=finished.scores[:, -1] >= log_p[:, 0] / _divisor(max_length, penalty),
    )


def _extend(
    log_p: jax.Array, logits: jax.Array, special: SpecialIds
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The K best continuations of K prefixes.

    Args:
      log_p: of the prefixes, -inf where there is none, shape (B, K).
      logits: of their next tokens, shape (B, K, V).
      special: the ids of padding, beginning and end.

    Returns:
      Four arrays (B, K): log p of the new prefixes, largest first; the old prefix that each
      continues; its last token; and log p of each old prefix with an end-of-sentence, -inf if that
      is not among the K best.
    """
    (batch, beams), vocabulary = log_p.shape, logits.shape[-1]
    never = special.unwritable
    if beams > vocabulary - len(never):
        raise ValueError(
            f"beams is {beams}; wanted at most {vocabulary - len(never)}, "
            f"the {vocabulary} tokens of the vocabulary without padding and beginning-of-sentence"
        )
    scores = log_p[..., None] + jax.nn.log_softmax(logits, axis=-1)
    ends = scores[..., special.eos]
    words = forbid(scores, (*never, special.eos)).reshape(batch, beams * vocabulary)
    going_on, index = top_k(words, beams)
    # An end that ties with the K-th best counts, as in greedy decoding, which takes the lower id of
    # two equally likely tokens: that of the end is lower than every word's.
    least = top_k(jnp.concatenate([ends, going_on], axis=1), beams)[0][:, -1:]
    ends = jnp.where(ends >= least, ends, -jnp.inf)
    return going_on, index // vocabulary, index % vocabulary, ends


def _divisor(length: int | jax.Array, penalty: float) -> jax.Array:
    """((5 + length) / 6)^penalty, float32."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** penalty


def _reordered(caches: Any, rows: jax.Array) -> Any:
    """Every cache with its rows at index `rows` (B*K,); a `Memory` has kernels beside its rows."""

    def one(cache: Any) -> Any:
        return take_rows(cache, rows) if isinstance(cache, Memory) else cache[rows]

    return jax.tree.map(one, caches, is_leaf=lambda cache: isinstance(cache, Memory))


def _take(tokens: jax.Array, index: jax.Array) -> jax.Array:
    """Rows (B, N, T) at index (B, M) -> (B, M, T)."""
    return jnp.take_along_axis(tokens, index[..., None], axis=1)
