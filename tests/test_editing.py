"""Vectors moved, noise tempered, components left out: the pure part."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import mixture, posterior
from tolerance import assert_close

import nvib_jax as nvib
from nvib_jax.editing import each_left_out, shift, temper, without_prior


def sets():
    return mixture(4, 5, seed=21, impulses=True), mixture(2, 3, seed=22)


def near(x, of, h):
    """`m` of `shift` in float64, a vector at a time."""
    there = np.asarray(of.present)
    weights = np.exp(np.asarray(of.log_weights, np.float64)) * there
    weights = (weights / weights.sum(1, keepdims=True))[there]
    points = np.asarray(of.mean, np.float64)[there]
    if h is not None:
        weights = weights * np.exp(-np.square(x - points).sum(1) / (2 * h * h))
    return weights @ points / weights.sum()


@pytest.mark.parametrize("h", [None, 0.8, 50.0])
def test_shift_moves_every_vector_by_the_difference_near_it(h):
    post, (towards, away) = posterior(zeros=True), sets()
    found = shift(post, towards, away, strength=1.5, bandwidth=h)
    want = np.asarray(post.mean, np.float64)
    for b, s in np.argwhere(np.asarray(post.present)):
        if s:
            x = np.asarray(post.mean, np.float64)[b, s]
            want[b, s] += 1.5 * (near(x, towards, h) - near(x, away, h))
    assert_close(found.mean, want)
    for name in ("log_variance", "log_alpha", "mask"):
        np.testing.assert_array_equal(getattr(found, name), getattr(post, name))


def test_a_large_bandwidth_is_none_and_equal_sets_move_nothing():
    post, (towards, away) = posterior(), sets()
    plain = shift(post, towards, away).mean
    assert_close(shift(post, towards, away, bandwidth=1e4).mean, plain, 1e-4)
    for h in (None, 1.0):
        assert_close(shift(post, towards, towards, strength=9.0, bandwidth=h).mean, post.mean)
        assert_close(shift(post, towards, away, strength=0.0, bandwidth=h).mean, post.mean)


def test_one_strength_and_bandwidth_a_text():
    post, (towards, away) = posterior(), sets()
    each = shift(
        post, towards, away, strength=jnp.float32([0, 1, 2]), bandwidth=jnp.float32([1, 2, 3])
    )
    for i in range(3):
        one = shift(post, towards, away, strength=float(i), bandwidth=float(i + 1))
        assert_close(each.mean[i], one.mean[i])


def test_what_is_not_present_in_a_set_moves_nothing():
    """NaN in padding is not read; every mixture weighs as much, however many vectors it has."""
    post, (towards, away) = posterior(), sets()
    hole = dataclasses.replace(
        towards, mean=jnp.where(towards.present[..., None], towards.mean, jnp.nan)
    )
    for h in (None, 1.0):
        want = shift(post, towards, away, bandwidth=h).mean
        assert_close(shift(post, hole, away, bandwidth=h).mean, want)
    heavier = dataclasses.replace(towards, log_weights=towards.log_weights + 5.0)
    assert_close(shift(post, heavier, away).mean, shift(post, towards, away).mean)


def test_tempered_draws_have_tempered_noise():
    """8,000 draws; means within 5 standard errors: false alarm under 1e-4."""
    post = posterior(batch=1, tokens=2)
    keys = jax.random.split(jax.random.key(2), 8_000)
    draws = jax.vmap(lambda k: nvib.sample(k, temper(post, 0.5)))(keys)
    z = np.asarray(draws.mean, np.float64)[:, 0]
    variance = np.exp(np.asarray(post.log_variance[0], np.float64)) / 4
    square = np.square(z - np.asarray(post.mean[0]))
    assert np.all(np.abs(square.mean(0) - variance) <= 5 * square.std(0) / np.sqrt(len(z)))
    pi = np.exp(np.asarray(draws.log_weights, np.float64))[:, 0]
    alpha = 4 * np.exp(np.asarray(post.log_alpha[0], np.float64))
    share = alpha / alpha.sum()
    square = np.square(pi - share)
    want = share * (1 - share) / (1 + alpha.sum())
    assert np.all(np.abs(square.mean(0) - want) <= 5 * square.std(0) / np.sqrt(len(z)))


def test_temperature_one_changes_nothing_and_expectations_stay():
    post = posterior(zeros=True)
    same = temper(post, 1.0)
    assert_close(same.log_variance, post.log_variance)
    np.testing.assert_array_equal(same.present, post.present)
    cool = nvib.expected(temper(post, jnp.float32([0.1, 1.0, 3.0])))
    want = nvib.expected(post).log_weights
    there = np.asarray(post.present)
    assert_close(cool.log_weights[there], want[there])


def test_each_component_is_left_out_once():
    post = posterior(batch=1, zeros=True)
    rows = each_left_out(post)
    assert rows.mean.shape == (6, 6, 8)
    want = np.broadcast_to(np.asarray(post.present), (6, 6)) & ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(rows.present, want)
    np.testing.assert_array_equal(without_prior(post).present[0], rows.present[0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda p, t, a: temper(p, 0.0), r"temperature is 0.0; wanted more than 0"),
        (lambda p, t, a: temper(p, jnp.ones(2)), r"temperature is an array of shape \(2,\); want"),
        (lambda p, t, a: each_left_out(p), r"posterior is of 3 texts; wanted one"),
        (lambda p, t, a: shift(p, t, a, bandwidth=-1.0), r"bandwidth is -1.0; wanted more than 0"),
        (lambda p, t, a: shift(p, t, a, strength=jnp.ones(2)), r"strength is an array of shape"),
        (lambda p, t, a: shift(p, t, p), r"away is a Posterior; wanted a Mixture"),
        (
            lambda p, t, a: shift(p, mixture(dim=4), a),
            r"towards.mean has shape \(3, 6, 4\); wanted \[T, Q, D\] = \(3, 6, 8\)",
        ),
    ],
)
def test_wrong_arguments(call, said):
    with pytest.raises(ValueError, match=said):
        call(posterior(), *sets())
