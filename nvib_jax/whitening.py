"""Whitening: vectors whose directions all vary alike, so that a cosine weighs them alike."""

from dataclasses import dataclass

import numpy as np

from nvib_jax.checks import check_number, check_shapes

RIDGE = 0.1  # of the mean variance, added to every direction's


@dataclass(frozen=True)
class Whitening:
    """The map `x -> (x - mean) (C + r tr(C) / D I)^(-1/2)` of a set of vectors of covariance C.

    The ridge r keeps directions in which the set hardly varies from becoming the loudest.

    Attributes:
      mean: shape (D,).
      matrix: shape (D, D), symmetric.

    Source: Su, Cao, Liu & Ou (2021), arXiv 2103.15316, without a ridge.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1000, 2)) * [1.0, 5.0] + 3.0
    >>> white = Whitening.of(x, ridge=0.0)(x)
    >>> bool(np.allclose(np.cov(white.T), np.eye(2)))
    True
    """

    mean: np.ndarray
    matrix: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, ridge: float = RIDGE) -> "Whitening":
        """The whitening of these vectors, shape (n, D).

        Raises:
          ValueError: fewer than two vectors, a negative ridge, or no variance at all.
        """
        check_shapes(vectors=(vectors, "float n D"))
        check_number("ridge", ridge, None)
        if len(vectors) < 2 or not ridge >= 0:
            raise ValueError(
                f"vectors, ridge are {len(vectors)}, {ridge}; wanted at least 2 vectors, ridge >= 0"
            )
        x = np.asarray(vectors, np.float64)
        values, axes = np.linalg.eigh(np.atleast_2d(np.cov(x.T)))
        values = np.maximum(values, 0.0)
        if not values.max() > 0:
            raise ValueError("vectors are all alike; wanted some that differ")
        # A direction without variance and without a ridge is left out instead of divided by 0.
        spread = values + ridge * values.mean()
        least = np.finfo(np.float64).eps * values.max() * len(values)
        scale = np.where(spread > least, 1 / np.sqrt(np.maximum(spread, least)), 0.0)
        return cls(x.mean(axis=0), (axes * scale) @ axes.T)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """The whitened vectors, float32, shape (n, D)."""
        return ((np.asarray(vectors, np.float64) - self.mean) @ self.matrix).astype(np.float32)
