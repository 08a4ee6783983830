"""Whitened vectors: covariance, ridge, directions that do not vary."""

import numpy as np
import pytest

from nvib_jax.whitening import Whitening


def cloud(n=500, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3)) + [1.0, 2.0, 3.0]).astype(np.float32)


def test_the_covariance_is_the_identity_without_a_ridge():
    x = cloud()
    white = Whitening.of(x, ridge=0.0)(x)
    assert white.dtype == np.float32
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-5)
    np.testing.assert_allclose(white.mean(0), 0.0, atol=1e-5)


def test_a_ridge_is_added_to_every_direction():
    x, ridge = cloud(), 0.5
    covariance = np.cov(x.T.astype(np.float64))
    found = Whitening.of(x, ridge=ridge)
    lifted = covariance + ridge * np.trace(covariance) / 3 * np.eye(3)
    np.testing.assert_allclose(found.matrix @ lifted @ found.matrix, np.eye(3), atol=1e-8)
    np.testing.assert_allclose(found.matrix, found.matrix.T)


def test_a_direction_that_never_varies_is_left_out():
    x = np.concatenate([cloud(), np.full((500, 1), 7.0, np.float32)], axis=1)
    white = Whitening.of(x, ridge=0.0)(x)
    assert np.isfinite(white).all()
    np.testing.assert_allclose(white[:, 3], 0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "ridge", "said"),
    [
        (cloud(1), 0.1, "vectors, ridge are 1, 0.1; wanted at least 2 vectors, ridge >= 0"),
        (cloud(), -1.0, "vectors, ridge are 500, -1.0; wanted"),
        (np.ones((5, 3)), 0.1, "vectors are all alike; wanted some that differ"),
        (np.ones(3), 0.1, r"vectors has shape \(3,\); wanted \[n, D\]"),
    ],
)
def test_wrong_vectors(x, ridge, said):
    with pytest.raises(ValueError, match=said):
        Whitening.of(x, ridge=ridge)
