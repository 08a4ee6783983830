"""A trained model as a person uses it: texts in and out, in order, errors that name the text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax import text_model
from nvib_jax.generate import DecodingConfig
from nvib_jax.models.nvae import NVAE
from nvib_jax.text_model import TextModel, pad

TEXTS = ["the dog sleeps", "a cat that often waits runs", "the queen waits", "soldiers rest"]


@pytest.fixture(scope="module")
def model():
    """The trained parameters under two buckets, four rows at a time."""
    trained = TextModel.load(tiny.trained()[0].train.run_dir)
    patch = pytest.MonkeyPatch()
    patch.setattr(text_model, "ROWS", 4)
    patch.setattr(text_model, "FEW", 0)
    yield dataclasses.replace(trained, buckets=(4, 24), _compiled={})
    patch.undo()


def test_pad():
    tokens, mask = pad([[5, 6], [7]], 3, 4)
    np.testing.assert_array_equal(tokens, [[5, 6, 0], [7, 0, 0], [0] * 3, [0] * 3])
    np.testing.assert_array_equal(mask, tokens > 0)


def test_reconstructions_come_in_order_whatever_the_buckets(model):
    texts = TEXTS * 3  # two buckets, several batches of each, the last not full
    together = model.reconstruct(texts)
    assert together == model.reconstruct(TEXTS) * 3
    assert [model.reconstruct([t])[0] for t in TEXTS] == together[:4]
    wide = dataclasses.replace(model, buckets=(24,))
    assert wide.reconstruct(texts) == together


def test_batches_do_not_draw_the_same_noise(model):
    """Two buckets whose batches both come first: their keys differ."""
    keys = []
    rows = model.tokenize(TEXTS * 3)
    model._in_batches(
        rows, lambda tokens, mask, name: keys.append(name) or jnp.zeros((4, 24), jnp.int32)
    )
    assert len(keys) == len(set(keys)) >= 4


def test_seeds_name_draws(model):
    how = {"form": "drawn", "decoding": DecodingConfig(method="sample")}
    one, again, other = (model.reconstruct(TEXTS, seed=s, **how) for s in (1, 1, 2))
    assert one == again != other


def test_encode_then_decode_is_reconstruct(model):
    posterior = model.encode(TEXTS)
    assert posterior.mean.shape == (4, 25, 16)
    mixture, form = model.mixture(posterior)
    assert model.decode(mixture, form) == model.reconstruct(TEXTS)


@pytest.mark.parametrize("form", [None, "exact", "drawn"])
def test_interpolation_begins_and_ends_at_the_ends(model, form):
    path = model.interpolate(*TEXTS[:2], steps=3, form=form, seed=3)
    mixture, read = model.mixture(model.encode(TEXTS[:2]), form=form, seed=3)
    assert len(path) == 3
    assert [path[0], path[-1]] == model.decode(mixture, read)


def test_samples(model):
    how = DecodingConfig(method="sample")
    out = model.sample(9, decoding=how)
    assert len(out) == 9
    assert len(set(out)) > 5
    assert out == model.sample(9, decoding=how)
    assert out != model.sample(9, decoding=how, seed=1)
    # Batches of four: the second is no copy of the first.
    assert out[:4] != out[4:8]


def test_samples_have_the_lengths_that_were_asked_for(model, monkeypatch):
    seen = []

    real = nvib.sample_prior

    def prior_draw(key, prior, lengths, *, max_length):
        jax.debug.callback(lambda n: seen.extend(n.tolist()), lengths)
        return real(key, prior, lengths, max_length=max_length)

    monkeypatch.setattr("nvib_jax.mixture.sample_prior", prior_draw)
    fresh = dataclasses.replace(model, _compiled={}, count_probabilities=np.eye(25)[7])
    fresh.sample(3, lengths=[2, 5, 24])
    fresh.sample(2)
    jax.effects_barrier()
    assert sorted(seen) == sorted([2, 5, 24, 1, 7, 7, 1, 1])  # ones fill the batch


def test_vectors_are_counted(model, monkeypatch):
    """p(m): a relu model drops some vectors, and its prior draws must have as many as are left."""
    counted = model.counted(TEXTS)
    lengths = [len(row) for row in model.tokenize(TEXTS)]
    np.testing.assert_allclose(counted.count_probabilities, np.bincount(lengths, minlength=25) / 4)

    def half(self, tokens, mask, key=None):
        posterior = encode(self, tokens, mask, key)
        kept = jnp.arange(25)[None] % 2 == 0  # of 1..n, every second
        return dataclasses.replace(
            posterior, log_alpha=jnp.where(kept, posterior.log_alpha, -jnp.inf)
        )

    encode = NVAE.encode
    monkeypatch.setattr(NVAE, "encode", half)
    sparse = dataclasses.replace(model, _compiled={})
    np.testing.assert_allclose(
        sparse.counted(TEXTS).count_probabilities,
        np.bincount([max(n // 2, 1) for n in lengths], minlength=25) / 4,
    )


def test_a_method_compiles_once_a_shape(model):
    fresh = dataclasses.replace(model, _compiled={})
    for texts in (TEXTS[:1], TEXTS, TEXTS[2:]):
        fresh.reconstruct(texts)
    (run,) = fresh._compiled.values()
    assert run._cache_size() == len({4 if len(r) <= 4 else 24 for r in model.tokenize(TEXTS)})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.reconstruct([]), r"texts is \[\]; wanted a list of at least one text"),
        (lambda m: m.reconstruct("the dog"), r"texts is 'the dog'; wanted a list"),
        (lambda m: m.reconstruct(["the dog", ""]), r"the text '' has 0 tokens; wanted 1 to 24"),
        (lambda m: m.encode(["the dog " * 20]), r"the text 'the dog the.*' has 40 tokens; wanted"),
        (lambda m: m.interpolate("the dog", "a cat", steps=1), r"steps is 1; wanted at least 2"),
        (lambda m: m.sample(0), r"count is 0; wanted at least 1"),
        (lambda m: m.sample(2, lengths=[3]), r"lengths is \[3\]; wanted 2 of 1 to 24"),
        (lambda m: m.sample(1, lengths=[]), r"lengths is \[\]; wanted 1 of 1 to 24"),
        (lambda m: m.sample(2, lengths=[3, 25]), r"lengths is \[3, 25\]; wanted 2 of 1 to 24"),
        (lambda m: m.sample(2, lengths=[0, 2]), r"lengths is \[0, 2\]; wanted"),
        (lambda m: m.sample(1, lengths=[2.5]), r"lengths is \[2.5\]; wanted 1 of 1 to 24"),
        (lambda m: m.reconstruct(["the dog"], form="best"),
         r"form is 'best'; wanted one of .*exact.*drawn"),
    ],
)  # fmt: skip
def test_errors(model, call, match):
    with pytest.raises(ValueError, match=match):
        call(model)
