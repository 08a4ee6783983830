"""Decoding: the same tokens as without a cache, the choice of a token, and where it ends."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.generate import DecodingConfig, choose, filter_logits, generate, rewrite, write
from nvib_jax.models.special_ids import BOS, EOS, PAD, SpecialIds

LOGITS = jnp.log(jnp.array([[0.05, 0.05, 0.1, 0.2, 0.25, 0.35]]))  # ids 0, 1 are PAD and BOS
KEY = jax.random.key(0)


def kept(logits, **how):
    return np.flatnonzero(np.isfinite(np.asarray(filter_logits(logits, **how)[0]))).tolist()


# ---- which tokens


@pytest.mark.parametrize(("top_k", "want"), [(0, 6), (1, 1), (2, 2), (6, 6), (100, 6)])
def test_top_k_keeps_the_likeliest(top_k, want):
    assert kept(LOGITS, top_k=top_k) == list(range(6 - want, 6))


def test_top_k_keeps_ties_with_the_last():
    assert kept(jnp.array([[1.0, 3.0, 2.0, 2.0]]), top_k=2) == [1, 2, 3]


@pytest.mark.parametrize(
    ("top_p", "want"), [(0.01, [5]), (0.34, [5]), (0.36, [4, 5]), (0.59, [4, 5]), (0.61, [3, 4, 5]),
                        (0.85, [2, 3, 4, 5]), (1.0, [0, 1, 2, 3, 4, 5])]
)  # fmt: skip
def test_top_p_keeps_the_fewest_with_the_mass(top_p, want):
    assert kept(LOGITS, top_p=top_p) == want


def test_top_p_is_of_what_top_k_left():
    # Among the last three the shares are .25, .3125, .4375.
    assert kept(LOGITS, top_k=3, top_p=0.7) == [4, 5]
    assert kept(LOGITS, top_p=0.7) == [3, 4, 5]


def test_rows_are_filtered_alone():
    logits = jnp.stack([LOGITS[0], LOGITS[0, ::-1]])
    out = np.isfinite(np.asarray(filter_logits(logits, top_k=2)))
    np.testing.assert_array_equal(out[1], out[0, ::-1])


def test_greedy_takes_the_likeliest_that_may_be_said():
    logits = jnp.array([[9.0, 8.0, 1.0, 2.0], [9.0, 8.0, 3.0, 2.0]])
    np.testing.assert_array_equal(choose(logits, KEY, DecodingConfig(), SpecialIds()), [3, 2])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_has_the_right_frequencies(temperature):
    """20,000 draws a temperature; five standard deviations a token: false alarm 3e-6 each."""
    count = 20_000
    config = DecodingConfig(method="sample", temperature=temperature)
    drawn = choose(jnp.tile(LOGITS, (count, 1)), jax.random.key(1), config, SpecialIds())
    weights = np.exp(np.asarray(LOGITS[0])) ** (1 / temperature)
    weights[[PAD, BOS]] = 0
    weights /= weights.sum()
    shares = np.bincount(drawn, minlength=6) / count
    np.testing.assert_array_less(
        np.abs(shares - weights), 5 * np.sqrt(weights * (1 - weights) / count) + 1e-12
    )
    assert shares[PAD] == shares[BOS] == 0


def test_pad_and_bos_have_no_share_of_the_nucleus():
    """They are forbidden before the filter, or all of a nucleus could be forbidden."""
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.06, 0.04]]))
    config = DecodingConfig(method="sample", top_p=0.2, top_k=1)
    np.testing.assert_array_equal(choose(logits, KEY, config, SpecialIds()), [2])


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0},
              {"top_p": 1.5}, {"method": "likely"}, {"beams": 0}, {"length_penalty": -0.5},
              {"length_penalty": float("nan")}, {"temperature": float("nan")},
              {"temperature": float("inf")}, {"top_p": float("nan")}, {"temperature": None},
              {"top_k": 2.5}, {"top_k": [3]}, {"beams": None}, {"method": ["beam"]}]
)  # fmt: skip
def test_a_choice_that_cannot_be_is_named(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}.*{re.escape(str(value))}.*wanted"):
        DecodingConfig(**wrong)


# ---- sentences


def scripted(*rows):
    """A model that says `rows` whatever it reads, and counts its steps."""
    script = jnp.array(rows)

    class Scripted:
        max_length, special = script.shape[1], SpecialIds()

        def empty_caches(self, batch, length):
            return jnp.int32(0)

        def decode_step(self, memories, caches, token, position):
            said = jax.lax.dynamic_index_in_dim(script, position, axis=1, keepdims=False)
            jax.debug.callback(lambda p, t: steps.append((int(p), t.tolist())), position, token)
            return jax.nn.one_hot(said, 12), caches + 1

    steps: list = []
    memory = type("Memory", (), {"bias": jnp.zeros((len(rows), 1))})()
    return Scripted(), (memory,), steps


def test_sentences_end_at_their_ends_and_the_loop_at_the_last():
    model, memories, steps = scripted([5, 6, EOS, 9, 9, 9], [7, EOS, 8, 8, 8, 8])
    out = generate(model, memories, KEY, max_length=6)
    np.testing.assert_array_equal(out, [[5, 6, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0]])
    jax.effects_barrier()
    # Three steps, not six; each is fed what the one before said, first the beginning.
    assert steps == [(0, [BOS, BOS]), (1, [5, 7]), (2, [6, PAD])]


def test_max_length_cuts_what_does_not_end():
    model, memories, steps = scripted([5, 6, 7, 8], [5, EOS, 7, 8])
    out = generate(model, memories, KEY, max_length=3)
    np.testing.assert_array_equal(out, [[5, 6, 7], [5, 0, 0]])
    jax.effects_barrier()
    assert len(steps) == 3


@pytest.mark.parametrize("length", [0, 7])
def test_max_length_within_the_models(length):
    model, memories, _ = scripted([5, 6, 7, 8, 9, 9])
    with pytest.raises(ValueError, match=f"max_length is {length}; wanted 1 to 6"):
        generate(model, memories, KEY, max_length=length)


def memories_of(module, data):
    mixture, form = module.read(module.encode(data["tokens"], data["mask"]))
    return module.memories(mixture, form)


@pytest.mark.parametrize(("layers", "norm"), [(1, "post"), (3, "pre")])
def test_greedy_is_the_argmax_without_a_cache(layers, norm):
    """Every token is what teacher forcing on all before it would choose."""
    module = tiny.model(decoder_layers=layers, norm=norm)
    module.output.kernel[...] *= 3  # sharper, and end-of-sentence likelier in some rows
    data = tiny.batch(lengths=(6, 3, 1, 4, 5, 2))

    @jax.jit
    def run():
        memories = memories_of(module, data)
        out = generate(module, memories, KEY, max_length=6)
        inputs = jnp.concatenate([jnp.full((6, 1), BOS, jnp.int32), out], axis=1)
        return out, module.decode(memories, inputs)

    out, logits = run()
    best = np.asarray(logits.at[..., jnp.array([PAD, BOS])].set(-jnp.inf).argmax(-1))
    out = np.asarray(out)
    for row, (said, wanted) in enumerate(zip(out, best, strict=True)):
        length = int((said != PAD).sum())
        np.testing.assert_array_equal(said[:length], wanted[:length], err_msg=str(row))
        assert length == 6 or wanted[length] == EOS
        assert (said[length:] == PAD).all()
    assert len({tuple(row) for row in out}) > 1


def test_a_row_does_not_depend_on_the_others():
    module, data = tiny.model(), tiny.batch()
    run = jax.jit(lambda d: generate(module, memories_of(module, d), KEY, max_length=6))
    out = run(data)
    for i in range(4):
        alone = run({n: v[i : i + 1] for n, v in data.items()})
        np.testing.assert_array_equal(alone[0], out[i])


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="it reads the code that XLA makes for CPUs"
)
def test_a_step_neither_transposes_nor_copies_a_cache():
    """Of the arrays of 4 x 2 x 11 x 8 numbers outside of the start, all are written in place."""
    module, data = tiny.model(max_length=11, decoder_layers=2), tiny.batch()

    def run():
        return generate(module, memories_of(module, data), KEY, max_length=11)

    text = jax.jit(run).lower().compile().as_text()
    found = set()
    for computation in text.split("\n\n"):
        for shape, kind in re.findall(r" = f32\[([\d,]+)\]\S* ([\w-]+)\(", computation):
            if math.prod(map(int, shape.split(","))) == 704 and "ENTRY" not in computation:
                found.add(kind)
    in_place = {"dynamic-update-slice", "parameter", "get-tuple-element", "bitcast", "fusion"}
    # The zeros of the start are a broadcast, which jax 0.12 puts into a computation of its own.
    allowed = in_place | {"broadcast"}
    assert "dynamic-update-slice" in found
    assert found <= allowed, found - allowed


def test_sampling_depends_on_its_key_only():
    module, data = tiny.model(), tiny.batch()
    config = DecodingConfig(method="sample")
    run = jax.jit(
        lambda key: generate(module, memories_of(module, data), key, max_length=6, config=config)
    )
    one, again, other = (np.asarray(run(jax.random.key(s))) for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert not np.isin(one, [BOS, EOS]).any()
    # Rows differ, and so do the positions of a row: no key is used twice.
    assert len({tuple(row) for row in one}) == 4


class Uniform:
    """A model whose next token is uniform, whatever it reads: only keys can link the two."""

    max_length, special = 1, SpecialIds()

    def __init__(self, posterior):
        self.posterior, self.seen = posterior, []

    def read(self, posterior, *, form, key):
        return nvib.sample(key, posterior), "exact"

    def remember(self, tokens, mask, key, keep=None, *, form):
        return self.memories(*self.read(self.posterior, form=form, key=key))

    def memories(self, mixture, form):
        self.seen.append(mixture.log_weights)
        return (type("Memory", (), {"bias": mixture.log_weights}),)

    def empty_caches(self, batch, length):
        return ()

    def decode_step(self, memories, caches, token, position):
        return jnp.zeros_like(memories[0].bias), caches


@pytest.mark.parametrize("how", ["rewrite", "write"])
def test_tokens_are_independent_of_the_drawn_weights(how):
    """The weight of the component whose number is the first token's: 1 / S if they are independent.

    4,000 keys; 5 standard errors: false alarm 6e-7. One key for both was 56 standard errors off.
    """
    count, size = 4000, 10
    x = jnp.zeros((1, size, 2))
    posterior = nvib.Posterior(x, x, jnp.full((1, size), -1.0), jnp.ones((1, size), bool))
    config = DecodingConfig(method="sample")

    @jax.jit
    @jax.vmap
    def run(key):
        model, options = Uniform(posterior), {"config": config, "max_length": 1}
        if how == "rewrite":
            ids = rewrite(model, x, x, key, form="drawn", **options)
        else:  # as `TextModel.mixture` and `TextModel.decode` do at one seed
            mixture, form = model.read(posterior, form="drawn", key=key)
            ids = write(model, mixture, key, form=form, **options)
        (log_weights,) = model.seen
        return ids[0, 0], jnp.exp(log_weights[0])

    ids, weights = (np.asarray(a) for a in run(jax.random.split(jax.random.key(7), count)))
    written = ids != PAD  # an end-of-sentence is written as padding
    found = weights[written, ids[written]]
    error = found.std() / written.sum() ** 0.5
    assert 0.85 < written.mean() < 0.9  # 7 of 8
    assert abs(found.mean() - 1 / size) < 5 * error
