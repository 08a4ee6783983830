"""How a pretrained model writes: the rules of its generation_config.json, as Hugging Face has them.

Beam search here ranks and stops as `transformers` does, so that a model writes what it is known to
write; `nvib_jax.generate.beam` is the search of this library's own models. The rules differ in
three ways: scores are log p / length^penalty; the 2K best continuations of a step are looked at,
and an end counts if it is among the first K; and by default a search stops when the best prefix, at
its present length, cannot beat the worst of K hypotheses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from nvib_jax.attention.cache import take_rows
from nvib_jax.fields import check_fields
from nvib_jax.generate.decoding import filter_logits, likeliest
from nvib_jax.pretrained.architecture import Architecture

Method = Literal["greedy", "sample", "beam"]
NEW_TOKENS = 128  # most that are written where nothing says how many


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the tokens are chosen; most fields are named as in generation_config.json."""

    method: Method = "greedy"
    """greedy, sample, or beam (beam search)."""
    num_beams: int = 4
    """Prefixes that beam search follows."""
    length_penalty: float = 1.0
    """Beam search ranks by log p / length^this; end-of-sentence counts, a prompt does not."""
    early_stopping: bool | Literal["never"] = False
    """When beam search stops: True as soon as there are `num_beams` sentences; False if no prefix
    beats them at its present length; never if none can at any length."""
    max_new_tokens: int = NEW_TOKENS
    """Most tokens to write, end-of-sentence included."""
    min_new_tokens: int = 0
    """Fewest tokens before end-of-sentence."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size is written twice; 0: any may be."""
    forced_bos_token_id: int | None = None
    """The first token, whatever the model says."""
    forced_eos_token_id: int | None = None
    """The last token if there is no room for another."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are never written."""
    temperature: float = 1.0
    """Logits are divided by this before sampling."""
    top_k: int = 0
    """Sample among this many likeliest tokens; 0 means all."""
    top_p: float = 1.0
    """Sample among the fewest tokens that hold this much probability."""

    def __post_init__(self) -> None:
        check_fields(self, "decoding")
        for name, least in (("num_beams", 1), ("max_new_tokens", 1), ("min_new_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"decoding.{name} is {getattr(self, name)}; wanted at least {least}"
                )
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature, top_k, top_p are {self.temperature}, {self.top_k}, {self.top_p}; "
                "wanted temperature > 0, top_k >= 0, 0 < top_p <= 1"
            )


# Fields of generation_config.json that say nothing about which tokens are chosen, or that a field
# of `Architecture` or an argument stands for.
_SILENT = {
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "eos_token_id",
    "max_length",
    "max_new_tokens",
    "min_length",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "task_specific_params",
}


def decoding_of(
    generation: Mapping[str, Any], config: Mapping[str, Any], about: Architecture
) -> tuple[Decoding, tuple[str, ...]]:
    """What the files say of writing, and the names of what they say and is not done here.

    Args:
      generation: content of generation_config.json, {} if there is none: older files have these
        fields in config.json.
      config: content of config.json.
      about: the architecture.
    """
    own = Decoding.__dataclass_fields__
    said = dict(generation) if generation else {k: v for k, v in config.items() if k in own}
    if not generation:
        said |= {k: config[k] for k in ("max_length", "min_length", "do_sample") if k in config}
    chosen = {name: value for name, value in said.items() if name in own and value is not None}
    if "bad_words_ids" in chosen:
        chosen["bad_words_ids"] = tuple(tuple(word) for word in chosen["bad_words_ids"])
    if about.start is not None:  # a length counts the token to start from, and a prompt
        for end, least in (("max", 1), ("min", 0)):
            if said.get(f"{end}_new_tokens") is None and said.get(f"{end}_length"):
                chosen[f"{end}_new_tokens"] = max(said[f"{end}_length"] - 1, least)
    beams = said.get("num_beams") or 1
    chosen["num_beams"] = beams if beams > 1 else Decoding.num_beams
    chosen["method"] = "beam" if beams > 1 else "sample" if said.get("do_sample") else "greedy"
    for name in ("length_penalty", "temperature", "top_p"):
        if name in chosen:
            chosen[name] = float(chosen[name])
    strange = (
        name
        for name, value in generation.items()
        if name not in own and name not in _SILENT and value not in (None, False, 0, 1.0, [], {})
    )
    return Decoding(**chosen), tuple(sorted(strange))


Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def generate(
    step: Step,
    caches: Any,
    logits: jax.Array,
    prompt: jax.Array,
    key: jax.Array,
    *,
    decoding: Decoding,
    about: Architecture,
) -> jax.Array:
    """Write on from a prompt.

    Args:
      step: (caches, tokens (R, 1), place) -> (logits (R, V) of the next tokens, caches).
      caches: with the prompt, B rows and room for `decoding.max_new_tokens` more.
      logits: of the first new token, shape (B, V).
      prompt: int, shape (B, P); for a decoder with an encoder, the token it starts from.
      key: PRNG key, used by sampling only.
      decoding: the rules.
      about: the architecture, for the ids of padding and end.

    Returns:
      int32 ids, shape (B, max_new_tokens): what was written, then padding; no end-of-sentence.
    """
    length = prompt.shape[1]
    room = jnp.full((prompt.shape[0], decoding.max_new_tokens), about.pad, jnp.int32)
    written = jnp.concatenate([prompt.astype(jnp.int32), room], axis=1)
    search = _beam if decoding.method == "beam" else _one_by_one
    return search(step, caches, logits, written, length, key, decoding, about)[:, length:]


def process(
    scores: jax.Array,
    written: jax.Array,
    place: jax.Array,
    start: int,
    decoding: Decoding,
    about: Architecture,
) -> jax.Array:
    """Scores of the next token under the rules: -inf for what is not allowed.

    Args:
      scores: logits or log-probabilities, shape (R, V).
      written: int, shape (R, L), of which `place` are there.
      place: of the next token, ().
      start: length of the prompt.
      decoding: the rules.
      about: the architecture.
    """
    vocabulary = jnp.arange(scores.shape[-1], dtype=jnp.int32)[None]

    def only(token: int, when: jax.Array, scores: jax.Array) -> jax.Array:
        forced = jnp.where(vocabulary == token, 0.0, -jnp.inf)
        return jnp.where(when, forced, scores)

    banned = jnp.zeros(scores.shape, bool)
    if decoding.no_repeat_ngram_size:
        banned |= _repeats(written, place, decoding.no_repeat_ngram_size, scores.shape[-1])
    for *before, last in decoding.bad_words_ids:
        ends_so = _ends_with(written, place, tuple(before))
        banned |= (vocabulary == last) & ends_so[:, None]
    if about.eos is not None:
        early = place - start < decoding.min_new_tokens
        banned |= (vocabulary == about.eos) & early
    scores = jnp.where(banned, -jnp.inf, scores)
    if decoding.forced_bos_token_id is not None:
        scores = only(decoding.forced_bos_token_id, place == start, scores)
    if decoding.forced_eos_token_id is not None:
        last_place = place == written.shape[1] - 1
        scores = only(decoding.forced_eos_token_id, last_place, scores)
    return scores


def _ends_with(written: jax.Array, place: jax.Array, tokens: tuple[int, ...]) -> jax.Array:
    """Whether the last tokens of each row are these, (R,)."""
    same = jnp.full(written.shape[:1], place >= len(tokens))
    for i, token in enumerate(tokens):
        own = jnp.take(written, jnp.maximum(place - len(tokens) + i, 0), axis=1)
        same &= own == token
    return same


def _repeats(written: jax.Array, place: jax.Array, size: int, vocabulary: int) -> jax.Array:
    """The tokens that would end an n-gram which is there already, bool (R, V)."""
    rows, length = written.shape
    starts = jnp.arange(length, dtype=jnp.int32)
    # An n-gram that starts at i is whole if its last token is before the next place.
    same = jnp.broadcast_to((starts + size - 1 < place)[None], written.shape)
    for i in range(size - 1):
        last = jnp.take(written, jnp.maximum(place - size + 1 + i, 0), axis=1)
        same &= jnp.roll(written, -i, axis=1) == last[:, None]
    ends = jnp.roll(written, -(size - 1), axis=1)
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], ends.shape)
    return jnp.zeros((rows, vocabulary), bool).at[row, ends].max(same)


def _one_by_one(step, caches, logits, written, start, key, decoding, about) -> jax.Array:
    """Greedy decoding and sampling."""

    def unfinished(state) -> jax.Array:
        place, _, _, _, done = state
        return (place < written.shape[1]) & ~jnp.all(done)

    def one(state):
        place, caches, logits, written, done = state
        scores = process(logits, written, place, start, decoding, about)
        if decoding.method == "greedy":
            token = likeliest(scores)
        else:
            kept = filter_logits(
                scores / decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p
            )
            token = jax.random.categorical(jax.random.fold_in(key, place), kept).astype(jnp.int32)
        if about.eos is not None:
            done = done | (token == about.eos)
        token = jnp.where(done, about.pad, token)
        written = jax.lax.dynamic_update_index_in_dim(written, token, place, axis=1)
        logits, caches = step(caches, token[:, None], place)
        return place + 1, caches, logits, written, done

    done = jnp.zeros(written.shape[:1], bool)
    state = (jnp.int32(start), caches, logits, written, done)
    return jax.lax.while_loop(unfinished, one, state)[3]


class _Beams(NamedTuple):
    place: jax.Array  # (), of the next token
    caches: Any  # B*K rows
    logits: jax.Array  # (B, K, V)
    prefixes: jax.Array  # int (B, K, L)
    log_p: jax.Array  # (B, K), best first
    found: jax.Array  # int (B, K, L), finished sentences
    scores: jax.Array  # (B, K), -inf where there is none
    open: jax.Array  # bool (B,), whether more sentences may be found


def _beam(step, caches, logits, written, start, key, decoding, about) -> jax.Array:
    """Beam search; the best sentence of each row, (B, L)."""
    del key
    (batch, length), beams, penalty = written.shape, decoding.num_beams, decoding.length_penalty
    rows = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), beams)

    def divisor(count: jax.Array | int) -> jax.Array:
        return jnp.asarray(count, jnp.float32) ** penalty

    def reordered(caches: Any, rows: jax.Array) -> Any:
        return tuple(take_rows(cache, rows) for cache in caches)

    def one(state: _Beams) -> _Beams:
        place, count = state.place, state.place + 1 - start
        log_p = jax.nn.log_softmax(state.logits, axis=-1).reshape(batch * beams, -1)
        flat = state.prefixes.reshape(batch * beams, length)
        allowed = process(log_p, flat, place, start, decoding, about)
        vocabulary = allowed.shape[-1]
        whole = state.log_p[..., None] + allowed.reshape(batch, beams, vocabulary)
        best, index = jax.lax.top_k(whole.reshape(batch, -1), 2 * beams)
        source, token = index // vocabulary, index % vocabulary
        grown = jnp.take_along_axis(state.prefixes, source[..., None], axis=1)
        grown = jax.lax.dynamic_update_index_in_dim(grown, token, place, axis=2)
        ends = jnp.full(token.shape, place + 1 == length)
        if about.eos is not None:
            ends |= token == about.eos
        # What ends among the first K is found, if this row is still open.
        first = jnp.arange(2 * beams, dtype=jnp.int32)[None] < beams
        ranked = jnp.where(ends & first & state.open[:, None], best / divisor(count), -jnp.inf)
        merged = jnp.concatenate([state.scores, ranked], axis=1)
        scores, kept = jax.lax.top_k(merged, beams)
        found = jnp.take_along_axis(
            jnp.concatenate([state.found, grown], axis=1), kept[..., None], axis=1
        )
        # The K best that do not end go on.
        log_p, on = jax.lax.top_k(jnp.where(ends, -jnp.inf, best), beams)
        prefixes = jnp.take_along_axis(grown, on[..., None], axis=1)
        source, token = (jnp.take_along_axis(a, on, axis=1) for a in (source, token))
        rows = (jnp.arange(batch, dtype=jnp.int32)[:, None] * beams + source).reshape(-1)
        logits, caches = step(
            reordered(state.caches, rows), token.reshape(-1, 1).astype(jnp.int32), place
        )
        return _Beams(
            place + 1,
            caches,
            logits.reshape(batch, beams, -1),
            prefixes,
            log_p,
            found,
            scores,
            state.open & may_improve(log_p[:, 0], scores, count),
        )

    def may_improve(best: jax.Array, scores: jax.Array, count: jax.Array) -> jax.Array:
        full = jnp.all(scores > -jnp.inf, axis=1)
        if decoding.early_stopping is True:
            return ~full
        longest = decoding.early_stopping == "never" and penalty > 0
        within = best / divisor(length - start if longest else count)
        return ~full | (within > scores[:, -1])

    def unfinished(state: _Beams) -> jax.Array:
        return (state.place < length) & jnp.any(state.open)

    prefixes = jnp.repeat(written[:, None], beams, axis=1)
    # Only one prefix starts alive, because K equal ones would find everything K times.
    alone = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)[None]
    end = jax.lax.while_loop(
        unfinished,
        one,
        _Beams(
            jnp.int32(start),
            reordered(caches, rows),
            jnp.repeat(logits[:, None], beams, axis=1),
            prefixes,
            jnp.broadcast_to(alone, (batch, beams)).astype(jnp.float32),
            prefixes,
            jnp.full((batch, beams), -jnp.inf, jnp.float32),
            jnp.ones((batch,), bool),
        ),
    )
    best = end.found[:, 0]
    return best if about.eos is None else jnp.where(best == about.eos, about.pad, best)
