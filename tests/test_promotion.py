"""Models say every conversion: no implicit rank or dtype, and float32 although x64 is on.

With x64 off the whole suite says the same. Everything is traced here and nothing computed.
"""

import jax
import jax.numpy as jnp
import pytest
import tiny

from nvib_jax.generate import DecodingConfig, rewrite
from nvib_jax.mixture import READS
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.params import merge, split
from nvib_jax.models.summaries import mean_vector
from nvib_jax.models.teacher_forcing import decoder_io

CASES = [{"kind": kind, "latent_queries": 2} for kind in LATENTS]
CASES += [{"kind": "VTP", "pool": pool} for pool in ("max", "first")]
CASES += [
    {"kind": "NVAE", "tied": True, "norm": "post", "pseudo_count": "exp_quadratic"},
    {"kind": "NVAE", "pseudo_count": "relu", "dtype": "bfloat16", "gate": "pace"},
]
DECODING = (
    DecodingConfig(),
    DecodingConfig(method="sample", top_k=3, top_p=0.5),
    DecodingConfig(method="beam"),
)


@pytest.fixture(autouse=True)
def strict():
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.enable_x64(True),
    ):
        yield


def shapes(function, *arguments):
    return jax.eval_shape(function, *arguments)


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(map(str, o.values())))
def test_models_convert_nothing_silently(options):
    module, data = tiny.model(dropout=0.1, **options), tiny.batch()
    key, (tokens, mask) = jax.random.key(0), data.values()
    graph, params = split(module)
    assert {p.dtype for p in params.values()} == {jnp.dtype("float32")}

    posterior = shapes(lambda: module.encode(tokens, mask, key))
    dtypes = (posterior.mean.dtype, posterior.log_variance.dtype, posterior.log_alpha.dtype)
    assert dtypes == (jnp.float32,) * 3
    assert shapes(lambda: mean_vector(module.encode(tokens, mask))).dtype == jnp.float32

    def loss(params):
        model, (inputs, *_) = merge(graph, params), decoder_io(tokens, mask)
        drawn = model.draw(model.encode(tokens, mask, key), key)
        return jnp.sum(model.decode(model.memories(drawn, "exact"), inputs, key))

    for name, grad in shapes(jax.grad(loss), params).items():
        assert grad.dtype == jnp.float32, name

    def read(form):
        mixture, read_form = module.read(module.encode(tokens, mask), form=form, key=key)
        half = module.latent.interpolate(mixture, mixture, jnp.full(len(tokens), 0.5, jnp.float32))
        return module.attention(module.memories(half, read_form), decoder_io(tokens, mask)[0])

    for form in READS if options["kind"] == "NVAE" else ("exact", "drawn"):
        assert shapes(lambda form=form: read(form)).dtype == jnp.float32
    for how in DECODING if options["kind"] == "NVAE" else DECODING[:1]:
        ids = shapes(
            lambda how=how: rewrite(
                module, tokens, mask, key, form=None, max_length=tiny.LENGTH, config=how
            )
        )
        assert ids.dtype == jnp.int32
