"""Merged, edited, paraphrased, dropped, embedded, compared: on a trained model's latents."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax import editing
from nvib_jax.kernels import log_similarity
from nvib_jax.text.edits import Editor
from nvib_jax.text_model import TextModel
from nvib_jax.whitening import Whitening

pytestmark = pytest.mark.filterwarnings("ignore::nvib_jax.text.as_typed.UnusualText")
TEXTS = ["the dog sees a cat", "a cat that often waits runs", "the queen waits here"]


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


@pytest.fixture
def decoded(monkeypatch):
    """What reaches the decoder, instead of texts, which a model of 20 steps hardly tells apart."""
    seen = []

    def decode(self, latent, form=None, *, decoding=None, seed=0):
        seen.append((latent, form))
        return [f"{i}" for i in range(len(latent.mask))]

    monkeypatch.setattr(Editor, "decode", decode)
    return seen


def shares(mixture, parts):
    """The sum of the weights in each of the parts that a union consists of."""
    weights = np.exp(np.asarray(jax.nn.log_softmax(mixture.log_weights, axis=-1)))
    return weights.reshape(parts, -1).sum(-1)


def test_merge_is_a_union_whose_weights_are_divided(model, decoded):
    assert model.merge(TEXTS, [3, 1, 4], form="exact") == "0"
    ((union, form),) = decoded
    assert form == "exact"
    assert union.mean.shape == (1, 3 * 25, 16)
    np.testing.assert_allclose(shares(union, 3), [3 / 8, 1 / 8, 4 / 8], rtol=1e-5)
    each, _ = model.mixture(model.encode(TEXTS), form="exact")
    np.testing.assert_array_equal(union.mean[0], each.mean.reshape(75, 16))


def test_merge_of_one_or_of_weight_zero_is_the_text_itself(model, decoded):
    model.merge(TEXTS, [0, 2, 0])
    model.merge(TEXTS[1:2])
    (first, _), (second, _) = decoded
    assert first.mean.shape == second.mean.shape == (1, 25, 16)
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.log_weights, second.log_weights, rtol=1e-4, atol=1e-5)


def test_merge_of_two_is_the_interpolation(model):
    assert model.merge(TEXTS[:2], [1, 1]) == model.interpolate(*TEXTS[:2], steps=3)[1]


def test_pooled_vectors_are_averaged_when_merged():
    """A kind's own interpolation merges it: VTP's vectors are on a straight line."""
    latent = tiny.model(kind="VTP").latent
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 2, 16)), jnp.float32)
    kept, mask = jnp.array([[False, True]]), jnp.ones((1, 2), bool)
    rows = [latent.attended(x, kept, mask) for x in z]
    half = latent.interpolate(rows[0], rows[1], jnp.float32([1 / 2]))
    third = latent.interpolate(half, rows[2], jnp.float32([1 / 3]))
    np.testing.assert_allclose(third.mean, z.mean(0), rtol=1e-5, atol=1e-6)


def test_edit_shifts_the_posterior(model, decoded):
    sets = {"towards": TEXTS[:1], "away": TEXTS[1:]}
    model.edit(TEXTS[:2], **sets, strength=2.0, bandwidth=1.5, form="exact")
    ((found, form),) = decoded
    examples = [model.vectors(texts) for texts in sets.values()]
    assert all(not m.present[:, 0].any() for m in examples)
    posterior = model.encode(TEXTS[:2])
    want = editing.shift(posterior, *examples, strength=2.0, bandwidth=1.5)
    jax.tree.map(np.testing.assert_array_equal, found, want)
    assert form == "exact"
    assert np.abs(found.mean - posterior.mean).max() > 1e-3


def test_an_edit_of_strength_zero_is_a_reconstruction(model):
    found = model.edit(TEXTS, towards=TEXTS[:1], away=TEXTS[1:], strength=0.0)
    assert found == model.reconstruct(TEXTS)


def test_paraphrases_are_draws_with_noise_of_their_own(model, decoded):
    model.paraphrase(TEXTS[0], 4, temperature=0.5)
    ((rows, form),) = decoded
    assert form == "drawn"
    want = editing.temper(model.encode(TEXTS[:1]), 0.5)
    assert rows.mean.shape == (4, 25, 16)
    for i in range(4):
        np.testing.assert_array_equal(rows.log_variance[i], want.log_variance[0])
    drawn, _ = model.mixture(rows, form="drawn", seed=1)
    assert np.abs(drawn.mean[0] - drawn.mean[1]).max() > 1e-3


def test_vectors_are_dropped_from_the_weakest_on(model, decoded):
    steps = model.drop(TEXTS[0])
    ((rows, _),) = decoded
    posterior = model.encode(TEXTS[:1])
    order = np.argsort(np.asarray(posterior.log_alpha)[0, 1:6])
    words = TEXTS[0].split()
    assert [s.vector for s in steps] == ["", *(words[i] for i in order[:-1])]
    assert [s.text for s in steps] == ["0", "1", "2", "3", "4"]
    present = np.asarray(rows.present)[:, 1:6]
    for i, row in enumerate(present):
        assert sorted(np.flatnonzero(~row)) == sorted(order[:i])
    assert np.asarray(rows.present)[:, 0].all()


def test_each_vector_is_dropped_alone(model, decoded):
    steps = model.drop(TEXTS[0], alone=True)
    ((rows, _),) = decoded
    assert [s.vector for s in steps] == ["", *TEXTS[0].split()]
    present = np.asarray(rows.present)[:, 1:6]
    np.testing.assert_array_equal(~present, np.eye(6, 5, k=-1, dtype=bool))


def test_embeddings_are_whitened_like_other_sentences(model):
    mean, like = model.embed(TEXTS), model.embed([*TEXTS[::-1], "a wolf runs here"])
    found = model.embed(TEXTS, how="whitened", like=[*TEXTS[::-1], "a wolf runs here"])
    np.testing.assert_allclose(found, Whitening.of(like)(mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        model.embed(TEXTS, how="whitened"), Whitening.of(mean)(mean), rtol=1e-4, atol=1e-5
    )


def test_similarity_is_the_cosine_of_mixtures(model, monkeypatch):
    monkeypatch.setattr("nvib_jax.text_model._COMPARED", 2)
    found = model.similarity(TEXTS, TEXTS[::-1])
    assert found.shape == (3, 3)
    np.testing.assert_allclose(np.diag(found[:, ::-1]), 1.0, atol=1e-5)
    np.testing.assert_allclose(found[:, ::-1], found[:, ::-1].T, atol=1e-6)
    vectors = model.vectors(TEXTS)
    want = np.exp(log_similarity(vectors, vectors, 16**0.5 / 3))
    np.testing.assert_allclose(found[:, ::-1], want, rtol=1e-4, atol=1e-6)
    near, far = (model.similarity(TEXTS, TEXTS, bandwidth=h)[0, 1] for h in (0.3, 3.0))
    assert near < far


def test_the_priors_component_is_not_compared(model, monkeypatch):
    found = model.similarity(TEXTS[:1], TEXTS[1:2])
    encode = TextModel.encode

    def stronger(self, texts, **how):
        posterior = encode(self, texts, **how)
        log_alpha = posterior.log_alpha.at[:, 0].add(9.0)
        return dataclasses.replace(posterior, log_alpha=log_alpha)

    monkeypatch.setattr(TextModel, "encode", stronger)
    np.testing.assert_allclose(model.similarity(TEXTS[:1], TEXTS[1:2]), found, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m.merge(TEXTS, [1, 2]), r"weights is \[1.0, 2.0\]; wanted 3 of at least 0"),
        (lambda m: m.merge(TEXTS, [1, -1, 1]), r"weights is \[1.0, -1.0, 1.0\]; wanted 3"),
        (lambda m: m.merge(TEXTS, [0, 0, 0]), r"wanted 3 of at least 0, not all 0"),
        (lambda m: m.paraphrase(TEXTS[0], 0), r"count is 0; wanted at least 1"),
        (lambda m: m.paraphrase(TEXTS[0], temperature=0.0), r"temperature is 0.0; wanted more"),
        (lambda m: m.drop("dog"), r"the text 'dog' has 1 vectors; wanted at least 2"),
        (lambda m: m.edit(TEXTS, towards=[], away=TEXTS), r"texts is \[\]; wanted a list"),
        (lambda m: m.embed(TEXTS, how="max"), r"how is 'max'; wanted one of 'mean', 'whitened'"),
        (lambda m: m.embed(TEXTS, like=TEXTS), r"like is given with how='mean'; 'whitened' alone"),
        (lambda m: m.embed(TEXTS[:1], how="whitened"), r"wanted at least 2 vectors"),
        (lambda m: m.similarity(TEXTS, TEXTS, bandwidth=0.0), r"bandwidth is 0.0; wanted more"),
    ],
)
def test_errors(model, call, said):
    with pytest.raises(ValueError, match=said):
        call(model)


def test_a_latent_without_noise_has_no_paraphrases(model):
    config = dataclasses.replace(model.config, model=tiny.model(kind="T").config)
    with pytest.raises(ValueError, match="a T draws nothing; wanted a variational latent"):
        model.described(config=config).paraphrase(TEXTS[0])


def test_vectors_are_the_present_means(model):
    vectors, posterior = model.vectors(TEXTS), model.encode(TEXTS)
    mean = nvib.expected(editing.without_prior(posterior))
    assert vectors.log_variance is None
    np.testing.assert_array_equal(vectors.mean, posterior.mean)
    np.testing.assert_array_equal(vectors.log_weights, mean.log_weights)
