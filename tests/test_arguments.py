"""What is refused, in which words: nothing is guessed, nothing fails as an AttributeError."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, mixture, normal, posterior, prior, query, statistics

import nvib_jax as nvib
from nvib_jax import objective
from nvib_jax.objective.cross_entropy import cross_entropy

KEY = jax.random.key(0)
N, NATS = jnp.arange(1, 3, dtype=jnp.int32), jnp.ones(2)
POST, MIX, BASE, K = posterior(), mixture(), prior(), kernels()
DRAW = nvib.sample(KEY, POST)
MEAN, LOG_VARIANCE, LOG_ALPHA, MASK = statistics()
LENGTHS = jnp.array([1, 0, 3])


def ints(x):
    return jnp.ones(x.shape, jnp.int32)


def but(value, **changes):
    return dataclasses.replace(value, **changes)


def make(**changes):
    given = {"mean": MEAN, "log_variance": LOG_VARIANCE, "log_alpha": LOG_ALPHA, "mask": MASK}
    return nvib.make_posterior(**{**given, "prior": BASE, **changes})


def attention(q=None, mix=MIX, **changes):
    return nvib.denoising_attention(query() if q is None else q, mix, **{**K, **changes})


def loss(states=MEAN, **changes):
    given = {"kernel": normal(1, 8, 5), "bias": normal(2, 5), "targets": ints(MASK), "mask": MASK}
    return cross_entropy(states, **{**given, **changes})


def at_prior(prior):
    """Everything that takes a prior, by name."""
    return {
        "make_posterior": lambda: make(prior=prior),
        "kl_gaussian": lambda: nvib.kl_gaussian(POST, prior),
        "kl_dirichlet": lambda: nvib.kl_dirichlet(POST, prior),
        "log_density_ratio": lambda: objective.log_density_ratio(DRAW, POST, prior),
        "gaussian": lambda: objective.gaussian_log_density_ratio(DRAW, POST, prior),
        "sample_prior": lambda: nvib.sample_prior(KEY, prior, LENGTHS, max_length=3),
    }


WRONG = {
    # ---- something else than what was wanted
    "mask None": (lambda: make(mask=None), r"mask is None; wanted an array \[B, N\]$"),
    "no mean": (lambda: make(mean=None), r"mean is None; wanted an array \[B, N, D\]$"),
    "a list": (lambda: make(log_alpha=[1.0]), r"log_alpha is a list; wanted an array \[B, N\]$"),
    "sample swapped": (lambda: nvib.sample(POST, KEY), "^key is a Posterior; wanted a PRNG key"),
    "a seed": (lambda: nvib.sample(0, POST), "^key is 0; wanted a PRNG key"),
    "a key": (lambda: nvib.sample(KEY, KEY), "^posterior is a PRNG key; wanted a Posterior$"),
    "kl swapped": (lambda: nvib.kl_gaussian(BASE, POST), "posterior is a Prior; wanted a Posterio"),
    "a class": (
        lambda: nvib.kl_dirichlet(nvib.Posterior, BASE),
        "posterior is the class Posterior",
    ),
    "mixture as posterior": (lambda: nvib.expected(MIX), "posterior is a Mixture; wanted a Pos"),
    "array as posterior": (
        lambda: nvib.vector_count(MEAN),
        r"posterior is an array of shape \(3, 5, 8\); wanted a P",
    ),
    "posterior to interpolate": (lambda: nvib.interpolate(MIX, POST, 0.5), "b is a Posterior; wan"),
    "attention swapped": (
        lambda: attention(MIX, query()),
        r"mixture is an array of shape \(3, 4, ",
    ),
    "posterior as mixture": (
        lambda: attention(mix=POST),
        "mixture is a Posterior; wanted a Mixtur",
    ),
    "mixture as query": (
        lambda: attention(MIX),
        r"query is a Mixture; wanted an array \[B, T, H, E",
    ),
    "mixture as memory": (
        lambda: nvib.attend(query(), MIX),
        "memory is a Mixture; wanted a Memory",
    ),
    "a memory": (lambda: nvib.make_memory(POST, **K), "^mixture is a Posterior; wanted a Mixture$"),
    "skip": (lambda: nvib.add_skip(LOG_ALPHA, LOG_ALPHA), "previous is an array of shape"),
    "x": (lambda: nvib.log_pseudo_count(None, MEAN[0, 0], 0.0), r"x is None; wanted an array"),
    "t": (lambda: nvib.interpolate(MIX, MIX, None), "t is None; wanted a number or an array"),
    # ---- dtypes
    "int query": (lambda: attention(ints(query())), "query has dtype int32; wanted a float dtype"),
    "bool query": (lambda: attention(query() > 0), "query has dtype bool; wanted a float dtype"),
    "int kernel": (lambda: attention(key_kernel=ints(K["key_kernel"])), "key_kernel has dtype int"),
    "bool kernel": (
        lambda: nvib.make_memory(MIX, **(K | {"value_kernel": K["value_kernel"] > 0})),
        "value_kernel has dtype bool; wanted a float dtype",
    ),
    "int bias": (lambda: attention(value_bias=jnp.ones((2, 4), int)), "value_bias has dtype int32"),
    "int mean": (lambda: make(mean=ints(MEAN)), "^mean has dtype int32; wanted a float dtype"),
    "int weights": (
        lambda: attention(mix=but(MIX, log_weights=ints(MIX.mask))),
        "mixture.log_weigh",
    ),
    "int states": (lambda: loss(ints(MEAN)), "states has dtype int32; wanted a float dtype"),
    "float targets": (
        lambda: loss(targets=LOG_ALPHA),
        "targets has dtype float32; wanted an integ",
    ),
    "int output": (
        lambda: loss(kernel=jnp.ones((8, 5), int)),
        "kernel has dtype int32; wanted a fl",
    ),
    "no logits": (lambda: loss(logits_at_once=0), "logits_at_once is 0; wanted at least 1"),
    "int x": (
        lambda: nvib.log_pseudo_count(ints(MEAN), MEAN[0, 0], 0.0),
        "x has dtype int32; wanted a fl",
    ),
    "int log_alpha": (
        lambda: nvib.random.loggamma(KEY, ints(LOG_ALPHA)),
        "log_alpha has dtype int",
    ),
    # ---- numbers
    "no draws": (
        lambda: nvib.sample(KEY, POST, num_samples=-1),
        "num_samples is -1; wanted at leas",
    ),
    "half a draw": (
        lambda: nvib.kl_gaussian(POST, BASE, num_samples=2.5),
        "is 2.5; wanted a whole number of at",
    ),
    "no count": (lambda: nvib.vector_count(POST, num_samples=-1), "num_samples is -1; wanted at l"),
    "half a count": (
        lambda: nvib.vector_count(POST, num_samples=2.5),
        "num_samples is 2.5; wanted",
    ),
    "true draws": (
        lambda: nvib.sample(KEY, POST, num_samples=True),
        "num_samples is True; wanted a",
    ),
    "half a length": (
        lambda: nvib.sample_prior(KEY, BASE, LENGTHS, max_length=2.5),
        "max_length is 2.5; wanted a",
    ),
    "length -1": (
        lambda: nvib.sample_prior(KEY, BASE, jnp.array([2, -1]), max_length=3),
        "lengths has -1; wanted 0 to max_length, 3",
    ),
    "length 100": (
        lambda: nvib.sample_prior(KEY, BASE, np.array([100]), max_length=3),
        "lengths has 100; wanted 0 to max_length, 3",
    ),
    "float lengths": (
        lambda: nvib.sample_prior(KEY, BASE, jnp.array([1.5]), max_length=3),
        "lengths has dtype float32; wanted an integer dtype",
    ),
    "bool lengths": (
        lambda: nvib.sample_prior(KEY, BASE, jnp.array([True]), max_length=3),
        "has dtype bool",
    ),
    "a column of thresholds": (
        lambda: nvib.expected(POST, threshold=jnp.zeros((3, 1))),
        r"threshold has shape \(3, 1\); wanted \(\) or \[B\] = \(3,\)",
    ),
    "one threshold a component": (
        lambda: nvib.expected(POST, threshold=jnp.zeros(6)),
        r"threshold has shape \(6,\); wanted",
    ),
    "nan threshold": (
        lambda: nvib.expected(POST, threshold=jnp.nan),
        "threshold is nan; wanted a n",
    ),
    "a width in quotes": (lambda: nvib.Prior.standard("4"), "^dim is '4'; wanted a number$"),
    "no alpha": (
        lambda: nvib.Prior.standard(4, alpha=None),
        "^alpha is None; wanted a number$",
    ),
    "two deltas": (
        lambda: nvib.Prior.standard(4, alpha_delta=jnp.ones(2)),
        r"^alpha_delta is an array of shape \(2,\); wanted a number$",
    ),
    "no lengths": (
        lambda: nvib.sample_prior(KEY, BASE, [], max_length=3),
        r"^lengths is \[\]; wanted at least one whole number$",
    ),
    "no budget": (lambda: objective.budget(None, N), r"^kl is None; wanted an array \[B\]$"),
    "no tokens": (lambda: objective.budget(NATS, None), "^tokens is None; wanted an array"),
    "no free bits": (
        lambda: objective.budget(NATS, N, free=None),
        "^free is None; wanted a number or an array$",
    ),
    "nothing to scale": (
        lambda: objective.published_scale(None, N),
        r"^kl is None; wanted an array \[B\]$",
    ),
    "no components": (
        lambda: objective.published_scale(NATS, None),
        "^components is None; wanted an array",
    ),
    "no likelihood": (
        lambda: objective.elbo(NATS, None, NATS, NATS),
        "^kl_gaussian is None; wanted a number or an array$",
    ),
    "no importance weights": (lambda: objective.iwae(None), "^log_weights is None; wanted a num"),
    "no such draws": (
        lambda: objective.iwae(NATS, axis=1),
        r"^axis is 1; wanted an axis of log_weights, of shape \(2,\)$",
    ),
    "dim 2.5": (lambda: nvib.Prior.standard(2.5), "dim is 2.5; wanted a whole number"),
    "nan alpha": (
        lambda: nvib.Prior.standard(2, alpha=float("nan")),
        "dim, alpha, alpha_delta are",
    ),
    # ---- which do not go together
    "another batch": (
        lambda: objective.log_density_ratio(nvib.sample(KEY, posterior(2)), POST, BASE),
        r"mixture.mean has shape \(2, 6, 8\); wanted \(3, K S, 8\)",
    ),
    "variances": (
        lambda: objective.log_density_ratio(nvib.expected(POST), POST, BASE),
        "mixture has variances; wanted impulses",
    ),
    "mean weights": (
        lambda: attention(mix=nvib.expected(POST), form="expected_logit"),
        r"mixture has 'mean' weights; form 'expected_logit' wants 'geometric' ones, those of nvib",
    ),
    "geometric weights": (
        lambda: nvib.make_memory(nvib.expected(POST, log_weights="geometric"), **K),
        r"mixture has 'geometric' weights; form 'exact' wants 'mean' ones",
    ),
    "two kinds": (
        lambda: nvib.interpolate(
            nvib.expected(POST), nvib.expected(POST, log_weights="geometric"), 0.5
        ),
        "a has mean weights and b geometric ones; wanted the same kind",
    ),
    "no kind": (
        lambda: attention(mix=but(MIX, weights_kind="mode")),
        "weights_kind is 'mode'; want",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(name):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


PRIORS = {
    "no prior": (MIX, "prior is a Mixture; wanted a Prior$"),
    "None": (None, "prior is None; wanted a Prior$"),
    "width 1": (prior(1), r"prior.mean has shape \(1,\); wanted \[D\] = \(8,\)"),
    "a column": (
        but(BASE, log_variance=jnp.zeros((8, 1))),
        r"prior.log_variance has shape \(8, 1\); wanted",
    ),
    "a batch": (
        but(BASE, log_alpha=jnp.zeros(3)),
        r"prior.log_alpha has shape \(3,\); wanted \[\]$",
    ),
    "ints": (but(BASE, mean=jnp.zeros(8, int)), "prior.mean has dtype int32; wanted a float dtype"),
    "nan": (
        but(BASE, mean=BASE.mean.at[2].set(jnp.nan)),
        "prior.mean has a nan; wanted finite num",
    ),
    "no alpha": (
        but(BASE, log_alpha=jnp.float32(-jnp.inf)),
        "prior.log_alpha has a -inf; wanted f",
    ),
    "negative": (but(BASE, alpha_delta=-0.5), "prior.alpha_delta is -0.5; wanted at least 0"),
}


@pytest.mark.parametrize("function", at_prior(BASE))
@pytest.mark.parametrize("name", PRIORS)
def test_priors(name, function):
    wrong, words = PRIORS[name]
    if (name, function) == ("width 1", "sample_prior"):
        return  # it has no width to fit
    with pytest.raises(ValueError, match=words):
        at_prior(wrong)[function]()


def test_what_fits_is_taken():
    """Python numbers for scalars, lists of lengths, NumPy arrays, values with the same fields."""
    assert BASE.check() == {"D": 8}
    plain = nvib.Prior(np.zeros(8, np.float32), np.zeros(8, np.float32), 0.0, 0.3)
    want = nvib.Prior.standard(8, alpha_delta=0.3)
    np.testing.assert_array_equal(nvib.kl_dirichlet(POST, plain), nvib.kl_dirichlet(POST, want))
    nvib.sample_prior(KEY, plain, [1, 3], max_length=np.int64(3))

    class Other(NamedTuple):
        mean: jax.Array
        log_variance: jax.Array
        log_alpha: jax.Array
        mask: jax.Array

    other = Other(POST.mean, POST.log_variance, POST.log_alpha, POST.mask)
    np.testing.assert_array_equal(nvib.kl_gaussian(other, BASE), nvib.kl_gaussian(POST, BASE))
    nvib.sample(jax.random.PRNGKey(0), POST)


def test_traced_lengths_cannot_break_the_prior_s_component():
    def draw(lengths):
        return nvib.sample_prior(KEY, BASE, lengths, max_length=3)

    got, want = jax.jit(draw)(jnp.array([-1, 100])), draw(jnp.array([0, 3]))
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.log_weights, want.log_weights)


# ---- the kind of a mixture's weights


def test_the_kind_of_weights_survives():
    for kind in ("mean", "geometric"):
        mix = nvib.expected(POST, log_weights=kind)
        assert mix.weights_kind == kind
        assert jax.jit(lambda m: m)(mix).weights_kind == kind
        assert jax.tree.map(lambda x: x, mix).weights_kind == kind
        assert len(jax.tree.leaves(mix)) == 4
        assert nvib.interpolate(mix, mix, 0.3).weights_kind == kind
        assert nvib.interpolate(DRAW, mix, 0.3).weights_kind == kind
    assert DRAW.weights_kind is None
    assert nvib.Mixture(MIX.mean, None, MIX.log_weights, MIX.mask).weights_kind is None
    for form in nvib.attention.FORMS:  # of impulses all are the same
        attention(mix=DRAW, form=form)


def test_present():
    post = posterior(zeros=True)
    want = np.asarray(post.mask) & (np.asarray(post.log_alpha) > -np.inf)
    assert not want[0, 2]  # the pseudo-count of 0
    assert not want[2, 5]  # padding
    np.testing.assert_array_equal(post.present, want)
    for mix in (nvib.expected(post), nvib.sample(KEY, post)):
        np.testing.assert_array_equal(mix.present, want)
    nan = but(post, log_alpha=post.log_alpha.at[1, 1].set(jnp.nan))
    assert nan.present[1, 1]  # not a number is not nothing


# ---- kernels away from home


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("name", "home"), [("pallas_tpu", "TPUs"), ("pallas_gpu", "GPUs")])
def test_a_kernel_on_a_cpu(name, home, jit):
    """Said when it is compiled for the CPU, so that it can be compiled for what is not there."""
    low = jnp.bfloat16 if name == "pallas_gpu" else jnp.float32
    q, k = query().astype(low), jax.tree.map(lambda x: x.astype(low), K)

    def run(q):
        return nvib.denoising_attention(q, MIX, **k, form="simplified", implementation=name)

    def gradient(q):
        return jax.grad(lambda q: jnp.sum(run(q).astype(jnp.float32)))(q)

    for f in (run, gradient):
        with pytest.raises(NotImplementedError, match=f"{name!r} runs on {home}; this is a CPU"):
            (jax.jit(f) if jit else f)(q)
    platform = "tpu" if name == "pallas_tpu" else "cuda"
    text = jax.jit(run).trace(q).lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" in text
