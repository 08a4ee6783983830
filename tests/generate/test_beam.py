"""Beam search: against all sentences, against itself without a cache, and where it stops."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxprs_in_params

from nvib_jax.generate import DecodingConfig, generate
from nvib_jax.generate.beam import beam_search
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import merge, split
from nvib_jax.models.special_ids import BOS, EOS, PAD, SpecialIds

KEY = jax.random.key(0)
LENGTHS = (6, 3, 1, 4)
LONGEST = 6


@functools.cache
def graph_of(layers=1, norm="pre", tied=False):
    return split(tiny.model(decoder_layers=layers, norm=norm, tied=tied))


def sharp(seed, ends=0.0, **how):
    """(structure, parameters) of a model that is sure of itself; `ends` is the end's bias."""
    graph, params = graph_of(**how)
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=params["output.kernel"].shape), jnp.float32)
    latent = {n: 6 * p for n, p in params.items() if n.endswith("latent_attention.out.kernel")}
    return graph, {
        **params,
        **latent,  # or all rows would say the same
        "output.kernel": kernel,
        "output.bias": params["output.bias"].at[EOS].set(ends),
    }


def memories_of(module, data):
    return module.memories(*module.read(module.encode(data["tokens"], data["mask"])))


@functools.cache
def searcher(graph, beams, penalty=0.0, kept=None):
    """(parameters, data) -> (ids (B, P, L), scores (B, P)), compiled once."""

    @jax.jit
    def run(params, data):
        module = merge(graph, params)
        how = {"beams": beams, "length_penalty": penalty, "kept": kept, "max_length": LONGEST}
        return beam_search(module, memories_of(module, data), **how)

    return run


@functools.cache
def greedy(graph):
    return jax.jit(
        lambda params, data: generate(
            (module := merge(graph, params)), memories_of(module, data), KEY, max_length=LONGEST
        )
    )


# ---- the same search in plain Python, every prefix read anew


@functools.cache
def reader(graph):
    """Parameters, data and prefixes (B, N, L) -> log p of what follows each, (B, N, L + 1, V)."""

    @jax.jit
    def run(params, data, prefixes):
        module = merge(graph, params)
        memories = memories_of(module, data)
        inputs = jnp.pad(prefixes, [(0, 0), (0, 0), (1, 0)], constant_values=BOS)
        logits = jax.vmap(lambda x: module.decode(memories, x), in_axes=1, out_axes=1)(inputs)
        return jax.nn.log_softmax(logits, axis=-1)

    return run


def follows(model, data, prefixes, beams, length):
    """log p of the next token of each row's prefixes, of this length: (B, K, V) in float64."""
    rows = np.zeros((len(prefixes), beams, LONGEST), np.int32)
    for b, row in enumerate(prefixes):
        for i, (_, prefix) in enumerate(row):
            rows[b, i, : len(prefix)] = prefix
    return np.asarray(reader(model[0])(model[1], data, rows)[:, :, length], np.float64)


def plain_search(model, data, beams, penalty, kept):
    """[(score, sentence)] of each row, best first, by the rules `nvib_jax.generate.beam` states."""
    rows = len(data["tokens"])
    alive, pool, done = [[(0.0, ())] for _ in range(rows)], [[] for _ in range(rows)], set()
    for length in range(1, LONGEST + 1):
        after = follows(model, data, alive, beams, length - 1)
        for b in set(range(rows)) - done:
            found = [
                (log_p + after[b, i, token], (*prefix, token))
                for i, (log_p, prefix) in enumerate(alive[b])
                for token in set(range(after.shape[-1])) - {PAD, BOS}
            ]
            found.sort(key=lambda f: -f[0])
            for log_p, sentence in found[:beams]:
                if sentence[-1] == EOS:
                    pool[b].append((log_p / ((5 + length) / 6) ** penalty, sentence[:-1]))
            pool[b] = sorted(pool[b], key=lambda f: -f[0])[:kept]
            alive[b] = [f for f in found if f[1][-1] != EOS][:beams]
            bound = alive[b][0][0] / ((5 + LONGEST) / 6) ** penalty
            if len(pool[b]) == kept and pool[b][-1][0] >= bound:
                done.add(b)
    for b in set(range(rows)) - done:
        pool[b] += [(p / ((5 + LONGEST) / 6) ** penalty, s) for p, s in alive[b]]
    return [sorted(row, key=lambda f: -f[0])[:kept] for row in pool]


def sentences(ids):
    return [[tuple(int(t) for t in hypothesis if t) for hypothesis in row] for row in ids]


@pytest.mark.parametrize(("beams", "penalty"), [(1, 0.0), (2, 0.6), (3, 0.0), (4, 0.6)])
def test_search_is_the_plain_one(beams, penalty):
    """Three models each: sentences that end soon, that may, and that never do; all K kept."""
    lengths = set()
    for seed, ends in enumerate((4.0, 1.5, -1e9)):
        model, data = sharp(seed, ends), tiny.batch(seed, LENGTHS)
        ids, scores = searcher(model[0], beams, penalty)(model[1], data)
        want = plain_search(model, data, beams, penalty, beams)
        assert sentences(ids) == [[s for _, s in row] for row in want]
        np.testing.assert_allclose(scores, [[p for p, _ in row] for row in want], rtol=1e-5)
        assert scores.dtype == jnp.float32
        lengths |= {len(row[0]) for row in sentences(ids)}
    assert min(lengths) < 3
    assert LONGEST in lengths


@pytest.mark.parametrize(("layers", "norm"), [(2, "post"), (3, "pre")])
def test_every_layers_cache_follows_its_prefix(layers, norm):
    model, data = sharp(5, 1.0, layers=layers, norm=norm), tiny.batch(5, LENGTHS)
    ids, _ = searcher(model[0], 3)(model[1], data)
    want = plain_search(model, data, 3, 0.0, 3)
    assert sentences(ids) == [[s for _, s in row] for row in want]


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_one_kept_is_the_best_of_all_kept(penalty):
    for seed, ends in enumerate((4.0, 1.5, -1e9)):
        (graph, params), data = sharp(seed, ends), tiny.batch(seed, LENGTHS)
        all_ids, all_scores = searcher(graph, 4, penalty)(params, data)
        ids, scores = searcher(graph, 4, penalty, 1)(params, data)
        np.testing.assert_array_equal(ids[:, 0], all_ids[:, 0])
        np.testing.assert_array_equal(scores[:, 0], all_scores[:, 0])


# ---- against all sentences


class Table:
    """A model whose log p of a token depends on the prefix, by a table drawn at random.

    The state of a prefix is its number in base V, so that its cache must follow it.
    """

    special = SpecialIds()

    def __init__(self, seed, vocabulary, max_length, rows=1, ends=0.0):
        rng = np.random.default_rng(seed)
        self.max_length, self.vocabulary = max_length, vocabulary
        table = rng.normal(size=(rows, vocabulary**max_length, vocabulary)) * 2
        table[..., EOS] += ends
        self.table = jnp.asarray(table, jnp.float32)
        self.memories = (type("Memory", (), {"bias": jnp.zeros((rows, 1))})(),)
        self.steps = []

    def empty_caches(self, batch, length):
        return (jnp.zeros((batch,), jnp.int32),)

    def decode_step(self, memories, caches, token, position):
        jax.debug.callback(lambda p: self.steps.append(int(p)), position)
        state = caches[0].reshape(token.shape)
        state = jnp.where(position == 0, 0, state * self.vocabulary + token)
        row = jnp.arange(len(token)).reshape(-1, *[1] * (token.ndim - 1))
        return self.table[row, state], (state.reshape(-1),)

    def score(self, row, sentence, ended, penalty):
        """What the search should give this sentence; a cut one has no end."""
        table = np.asarray(jax.nn.log_softmax(self.table[row]), np.float64)
        state = total = 0
        said = (*sentence, EOS) if ended else sentence
        for token in said:
            total, state = total + table[state, token], state * self.vocabulary + token
        return total / ((5 + len(said)) / 6) ** penalty

    def best(self, row, penalty):
        words = [v for v in range(self.vocabulary) if v not in (PAD, BOS, EOS)]
        every = [
            (self.score(row, s, ended, penalty), s)
            for length in range(self.max_length + 1)
            for s in itertools.product(words, repeat=length)
            for ended in ([True] if length < self.max_length else [False])
        ]
        return max(every)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 3.0])
@pytest.mark.parametrize(("vocabulary", "max_length", "beams"), [(4, 5, 2), (12, 2, 10)])
def test_a_beam_that_holds_everything_finds_the_best(vocabulary, max_length, beams, penalty):
    """One word and an end, or two tokens: no prefix is ever dropped. Eight sentences each."""
    model = Table(vocabulary, vocabulary, max_length, rows=8)
    how = {"max_length": max_length, "beams": beams, "length_penalty": penalty}
    ids, scores = jax.jit(lambda: beam_search(model, model.memories, **how))()
    for row in range(8):
        score, sentence = model.best(row, penalty)
        assert sentences(ids)[row][0] == sentence
        np.testing.assert_allclose(scores[row, 0], score, rtol=1e-5)


def test_a_narrow_beam_is_between_greedy_and_the_best():
    """Two words, three tokens: K = 3 is not everything, nor always the best. 20 sentences."""
    model = Table(7, 5, 3, rows=20)
    out = {
        beams: jax.jit(
            lambda beams=beams: beam_search(model, model.memories, max_length=3, beams=beams)
        )()
        for beams in (1, 3)
    }
    first = {beams: np.asarray(scores[:, 0]) for beams, (_, scores) in out.items()}
    best = np.array([model.best(row, 0.0)[0] for row in range(20)])
    assert (first[3] <= best + 1e-5).all()
    assert (first[3] >= first[1]).all()
    assert (first[3] > first[1] + 0.1).any()
    assert np.isclose(first[3], best).sum() > np.isclose(first[1], best).sum()


def test_hypotheses_that_are_not_there_are_empty():
    """One word: sentences of 0, 1 and 2 words and no other; five places."""
    model = Table(0, 4, 2)
    ids, scores = beam_search(model, model.memories, max_length=2, beams=2, kept=5)
    np.testing.assert_array_equal(np.isfinite(scores), [[True] * 3 + [False] * 2])
    assert sorted(sentences(ids)[0]) == [(), (), (), (3,), (3, 3)]


# ---- against greedy


@pytest.mark.parametrize("ends", [4.0, 1.5, -1e9])
def test_one_beam_is_greedy(ends):
    for seed in range(4):
        (graph, params), data = sharp(seed, ends), tiny.batch(seed, LENGTHS)
        ids, _ = searcher(graph, 1)(params, data)
        np.testing.assert_array_equal(ids[:, 0], greedy(graph)(params, data))


def test_ties_are_greedys():
    """Two words, and then a word and the end, are equally likely: the lower id is said."""

    class Tied(Table):
        def decode_step(self, memories, caches, token, position):
            logits = jnp.where(position == 1, jnp.array([9, 9, 5, 5, 1, 1]), jnp.array([0] * 6))
            logits = jnp.where((position == 0) & (jnp.arange(6) == EOS), -9, logits)
            shape = (*token.shape, 6)
            return jnp.broadcast_to(logits.astype(jnp.float32), shape), caches

    model = Tied(0, 6, 3)
    how = {"max_length": 3}
    want = generate(model, model.memories, KEY, **how)
    np.testing.assert_array_equal(want, [[3, 0, 0]])
    ids, _ = beam_search(model, model.memories, beams=1, **how)
    np.testing.assert_array_equal(ids[:, 0], want)


def test_more_beams_find_what_is_no_less_likely():
    """log p by teacher forcing. A wider beam may lose greedy's prefix, so not for every model;
    of these 24 sentences it does not, and it finds better for several."""
    gained = 0
    for seed in range(6):
        (graph, params), data = sharp(seed, 1.5), tiny.batch(seed, LENGTHS)
        ids, scores = searcher(graph, 4)(params, data)
        said = np.stack([ids[:, 0], greedy(graph)(params, data)], axis=1)
        after = np.asarray(reader(graph)(params, data, said), np.float64)
        log_p = np.zeros(said.shape[:2])
        for b, n in np.ndindex(*log_p.shape):
            end = [EOS] if (said[b, n] == PAD).any() else []
            tokens = [*said[b, n][said[b, n] > 0], *end]
            log_p[b, n] = sum(after[b, n, i, token] for i, token in enumerate(tokens))
        np.testing.assert_allclose(log_p[:, 0], scores[:, 0], rtol=1e-5)
        assert (log_p[:, 0] >= log_p[:, 1] - 1e-5).all()
        gained += int((log_p[:, 0] > log_p[:, 1] + 1e-3).sum())
    assert gained >= 3


# ---- cost


def test_one_trace_serves_every_batch_and_position():
    graph, params = sharp(0, 1.5)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(params, data):
        module = merge(graph, params)
        step = chex.assert_max_traces(NVAE.decode_step, n=1)
        module.decode_step = functools.partial(step, module)
        return beam_search(module, memories_of(module, data), max_length=LONGEST, beams=2)

    for seed, lengths in enumerate([LENGTHS, (1, 1, 1, 1), (6, 6, 2, 5)]):
        run(params, tiny.batch(seed, lengths))


@pytest.mark.parametrize(("kept", "want"), [(1, 2), (2, 3)])
def test_the_loop_stops_when_no_prefix_can_beat_what_is_kept(kept, want):
    """An end has .8 of every step: the empty sentence .8, one word .12; prefixes .15, .0225."""

    class Ending(Table):
        def decode_step(self, memories, caches, token, position):
            jax.debug.callback(lambda p: self.steps.append(int(p)), position)
            p = jnp.log(jnp.array([1e-9, 1e-9, 0.8, 0.15, 0.05]))
            quiet = jnp.log(jnp.array([1e-9, 1e-9, 1e-9, 0.9, 0.1]))
            # The second row says its first end a step later.
            late = (position == 0) & (jnp.arange(2) == 1)
            logits = jnp.where(late[:, None, None], quiet, p)
            return jnp.broadcast_to(logits, (*token.shape, 5)), caches

    model = Ending(0, 5, 2, rows=2)
    model.max_length = 9
    ids, scores = beam_search(model, model.memories, max_length=9, beams=2, kept=kept)
    jax.effects_barrier()
    assert model.steps == list(range(want))
    assert sentences(ids) == [[(), (3,)][:kept], [(3,), (3, 3)][:kept]]
    np.testing.assert_allclose(
        jnp.exp(scores), np.array([[0.8, 0.12], [0.72, 0.108]])[:, :kept], rtol=1e-5
    )


def test_a_row_does_not_depend_on_the_others():
    (graph, params), data = sharp(1, 1.5), tiny.batch(1, LENGTHS)
    run = searcher(graph, 3, 0.6)
    ids, scores = run(params, data)
    for i in range(len(LENGTHS)):
        alone = run(params, {name: value[i : i + 1] for name, value in data.items()})
        np.testing.assert_array_equal(alone[0][0], ids[i])
        np.testing.assert_allclose(alone[1][0], scores[i], rtol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers know a top-k anyway")
def test_a_step_does_not_sort_the_vocabulary():
    graph, params = sharp(0)
    compiled = searcher(graph, 3).lower(params, tiny.batch(0, LENGTHS)).compile().as_text()
    assert "TopK" in compiled
    assert " sort(" not in compiled


def shapes(jaxpr):
    """Of every array in a jaxpr, loops and calls included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in (*equation.invars, *equation.outvars))
        for inner in jaxprs_in_params(equation.params):
            yield from shapes(inner)


def test_the_memory_is_not_copied_for_a_beam():
    """5 rows, 3 beams, 7 components: nothing has 15 rows of 7, in any order of axes."""
    graph, params = sharp(0)
    data = tiny.batch(0, (6, 3, 1, 4, 2))

    def run(params):
        module = merge(graph, params)
        memories = memories_of(module, data)
        assert memories[0].key.shape[:3] == (5, 2, 7)
        return beam_search(module, memories, max_length=LONGEST, beams=3)

    seen = set(shapes(jax.make_jaxpr(run)(params).jaxpr))
    assert (5, 2, 7, 8) in seen  # keys
    assert (15, 2, 6, 8) in seen  # caches
    # Logits and weights, B, H, K and S in some order, are all that has beams and components.
    both = {s for s in seen if 7 in s and (15 in s or {3, 5} <= set(s))}
    assert {tuple(sorted(s)) for s in both} == {(2, 3, 5, 7)}


# ---- what callers see


def test_generate_gives_the_best():
    (graph, params), data = sharp(2, 1.5), tiny.batch(2, LENGTHS)
    module = merge(graph, params)
    config = DecodingConfig(method="beam", beams=3, length_penalty=0.6)
    out = jax.jit(
        lambda: generate(module, memories_of(module, data), KEY, max_length=LONGEST, config=config)
    )()
    assert out.shape == (4, LONGEST)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, searcher(graph, 3, 0.6)(params, data)[0][:, 0])


def test_more_beams_than_tokens_are_refused():
    model = Table(0, 6, 2)
    config = DecodingConfig(method="beam", beams=5)
    with pytest.raises(ValueError, match="beams is 5; wanted at most 4, the 6 tokens"):
        generate(model, model.memories, KEY, max_length=2, config=config)
    beam_search(model, model.memories, max_length=2, beams=4)
