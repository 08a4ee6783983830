"""Every figure of the summary against a case worked by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.data import default_grammar, prepare
from nvib_jax.evaluation import (
    evaluate,
    evidence_bound,
    language_scores,
    summarize,
    summary,
    vector_usage,
)
from nvib_jax.evaluation.likelihood import bound_terms, log_count_probability
from nvib_jax.evaluation.usage import effective_number, vectors_kept
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.text_model import TextModel

TEXTS = ["the dog sleeps", "a cat that often waits runs", "the queen waits", "soldiers rest"]


@pytest.fixture(scope="module")
def model():
    patch = pytest.MonkeyPatch()
    patch.setattr("nvib_jax.text.engine.ROWS", 8)
    yield TextModel.load(tiny.trained()[0].train.run_dir)
    patch.undo()


# ---- use of vectors


def test_effective_number_by_hand():
    """Three components, four positions of which the last is padding."""
    even = jnp.full((1, 4, 3), 1 / 3)
    one = jnp.zeros((1, 4, 3)).at[..., 2].set(1.0)
    turns = jnp.stack([jnp.eye(3)[jnp.array([0, 1, 0, 2])]])
    counted = jnp.array([[True, True, True, False]])
    attention = jnp.concatenate([even, one, turns])
    found = effective_number(attention, jnp.tile(counted, (3, 1)))
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    np.testing.assert_allclose(found, [3, 1, math.exp(entropy)], rtol=1e-6)


def test_kept_by_hand():
    module = tiny.model()
    log_alpha = jnp.log(jnp.array([[9.0, 0.2, 0.05, 0.5, 0.5], [9.0, 0.2, 0.0, 9.0, 9.0]]))
    mask = jnp.array([[True, True, True, False], [True, True, False, False]])
    zeros = jnp.zeros((2, 5))
    given = nvib.Mixture(zeros[..., None], None, zeros, zeros == 0)
    real = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
    found = nvib.Posterior(zeros[..., None], zeros[..., None], log_alpha, real)
    # The prior's component and padding do not count: 2 of 3 above .1, 1 of 2.
    np.testing.assert_array_equal(vectors_kept(module, found, given).sum(-1), [2, 1])
    dropped = dataclasses.replace(given, log_weights=zeros.at[0, 1].set(-jnp.inf))
    np.testing.assert_array_equal(vectors_kept(module, found, dropped).sum(-1), [1, 1])
    np.testing.assert_array_equal(
        vectors_kept(tiny.model(threshold=0.3), found, given).sum(-1), [1, 0]
    )
    np.testing.assert_array_equal(
        vectors_kept(tiny.model(threshold=0.0), found, given).sum(-1), [3, 1]
    )


def test_usage_of_texts_is_their_mean(model):
    many = TEXTS * 5
    together, alone = vector_usage(model, many), [vector_usage(model, [t]) for t in TEXTS]
    for name in ("kept_hard", "kept_soft"):
        want = np.mean([one[name] for one in alone])
        assert together[name] == pytest.approx(want, rel=1e-5)
        assert all(0 < one[name] <= 1 for one in alone)


# ---- likelihood


def test_log_count_probability_is_a_distribution():
    shares = np.array([0.0, 0.5, 0.25, 0.25, 0.0])
    log_p = log_count_probability(shares, np.arange(5))
    assert np.exp(log_p).sum() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(np.exp(log_p), 0.999 * shares + 0.0002, rtol=1e-6)


def test_the_models_counts_cover_every_length(model):
    """A bound needs p(m) to sum to 1 over all that may come, the longest text included."""
    assert model.count_probabilities.shape == (model.max_length + 1,)
    fresh = model.counted(TEXTS)
    assert fresh.count_probabilities.shape == (model.max_length + 1,)


def test_the_parts_of_the_bound_add_up(model):
    found = evidence_bound(model, TEXTS)
    parts = (
        found["log_likelihood"] + found["log_prob_count"]
        - found["kl_gaussian"] - found["kl_dirichlet"]
    )  # fmt: skip
    assert found["elbo_sentence"] == pytest.approx(parts, rel=1e-5)
    tokens = sum(len(row) + 1 for row in model.tokenize(TEXTS))
    assert found["elbo_token"] == pytest.approx(4 * parts / tokens, rel=1e-5)
    assert found["reconstruction_token"] == pytest.approx(4 * found["log_likelihood"] / tokens)
    assert found["kl_gaussian"] > 0
    assert found["kl_dirichlet"] > 0


def test_the_bound_does_not_depend_on_the_batches(model):
    """Everything but the drawn term is a function of the sentence."""
    many = evidence_bound(model, TEXTS * 5)
    alone = [evidence_bound(model, [text]) for text in TEXTS]
    for name in ("kl_gaussian", "kl_dirichlet", "log_prob_count"):
        want = np.mean([one[name] for one in alone])
        assert many[name] == pytest.approx(want, rel=1e-5), name


def test_the_bounds_terms_are_those_of_the_objective():
    module, data = tiny.model(tiny.Still), tiny.batch()
    tokens, mask = data["tokens"], data["mask"]

    @jax.jit
    def wanted():
        posterior, prior = module.encode(tokens, mask), module.latent.prior
        memories = module.memories(module.draw(posterior, jax.random.key(0)), "exact")
        inputs, targets, counted = decoder_io(tokens, mask)
        return (
            log_likelihood(module.decode(memories, inputs), targets, counted),
            {
                "gaussian": nvib.kl_gaussian(posterior, prior, form="exact"),
                "dirichlet": nvib.kl_dirichlet(posterior, prior, form="exact"),
            },
            mask.sum(-1),
        )

    terms = jax.jit(lambda: bound_terms(module, tokens, mask, jax.random.key(0)))()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), terms, wanted())


# ---- language


def test_language_scores_of_sentences_and_garbage():
    grammar = default_grammar()
    good = [s for s in prepare(tiny.config().data).sentences("train", 6)]
    scores = language_scores(good)
    assert scores["in_language"] == 1
    assert scores["log_prob"] == pytest.approx(np.mean([grammar.log_prob(s) for s in good]))
    assert scores["distinct"] == len(set(good)) / 6
    mixed = language_scores([*good[:3], good[0], "dog the the", ""])
    assert mixed["in_language"] == pytest.approx(4 / 6)
    assert mixed["distinct"] == pytest.approx(5 / 6)
    assert math.isnan(language_scores(["dog the the"])["log_prob"])


# ---- all of it


@pytest.mark.parametrize(
    "call",
    [
        lambda m: language_scores([]),
        lambda m: vector_usage(m, []),
        lambda m: evidence_bound(m, []),
        lambda m: evaluate(m, []),
    ],
)
def test_no_texts_is_an_error(model, call):
    with pytest.raises(ValueError, match=r"texts is .*at least one"):
        call(model)


def test_a_single_sentence_has_a_summary(model):
    scores = evaluate(model, TEXTS[:1])
    assert set(scores) >= {"exact", "bleu", "kept_hard", "kept_soft", "elbo_token"}
    assert "in_language" not in scores
    page = summarize(model, TEXTS[:1], scores, scores)
    assert "Reconstructions of held-out sentences" in page
    assert "prior samples in the language" not in page


def test_the_page_has_every_section(model):
    """Of the run's own summary, and of 40 texts: pairs to go half way between."""
    page = (tiny.folder() / "trained" / "summary.txt").read_text()
    for title in (
        "trained   untrained", "sentences reconstructed exactly", "reconstruction BLEU",
        "vectors kept (pseudo-count", "vectors kept (effective", "ELBO a token, nats",
        "prior samples in the language", "Reconstructions of held-out", "Samples from the prior",
        "Interpolation", "Half way between pairs",
    ):  # fmt: skip
        assert title in page
    assert page.count("  in   ") == 6
    assert page.count("  half ") >= 1
    for t in ("0.00", "0.25", "0.50", "0.75", "1.00"):
        assert f"\n  {t} " in page


def test_a_figure_that_is_not_there_is_a_dash(model, monkeypatch):
    """log-probability of no sentence at all is not a number; a person reads a dash."""
    monkeypatch.setattr(TextModel, "reconstruct", lambda self, texts, **k: list(texts))
    monkeypatch.setattr(TextModel, "sample", lambda self, n, **k: ["x"] * n)
    monkeypatch.setattr(TextModel, "interpolate", lambda self, a, b, steps, **k: ["x"] * steps)
    scores = {"exact": 0.5, "log_prob": float("nan")}
    page = summary.summarize(model, TEXTS, scores, {"exact": 0.0, "log_prob": -30.0})
    assert "nan" not in page
    (line,) = (row for row in page.splitlines() if "exact log-prob" in row)
    assert line.split()[-2:] == ["-", "-30.0"]
    assert page.count("\n  = out ") == 4
