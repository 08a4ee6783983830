"""Arrays -> `matplotlib.figure.Figure`s: training, rate and distortion, vectors, attention.

No pyplot and no global state: `figure.savefig("a.svg")` works anywhere, and a notebook shows the
figure that a cell ends with or `display` is given. A *series* is (label, x, y); series that share a
label, as the seeds of one setting do, share a colour, and `order` fixes which colour a label has in
several figures. Colours are Okabe & Ito's, which the colour-blind can tell apart; values that are
None, NaN or infinite are left out.
"""

from nvib_jax.plots.latent import (
    Field,
    attention_map,
    kl_per_dimension,
    mixture_field,
    mixture_fields,
    token_weights,
    words_lost,
)
from nvib_jax.plots.scores import (
    Series,
    curves,
    forms_compared,
    rate_distortion,
    vectors_by_length,
)

__all__ = [
    "Field",
    "Series",
    "attention_map",
    "curves",
    "forms_compared",
    "kl_per_dimension",
    "mixture_field",
    "mixture_fields",
    "rate_distortion",
    "token_weights",
    "vectors_by_length",
    "words_lost",
]
