"""Denoising attention: `Mixture` and queries -> the expected denoised vector of each query.

`denoising_attention` checks its arguments and dispatches. `inputs` reduces every form to one
primitive over a `Memory`; `xla`, `cudnn`, `pallas_tpu` and `pallas_gpu` compute that primitive, and
`choice` says which of them is used on which device. `reference` evaluates the equation as written.
On a mesh (`nvib_jax.mesh`) each device computes the attention of its own sentences and heads.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nvib_jax.attention import reference, xla
from nvib_jax.attention.choice import fastest
from nvib_jax.attention.home import runs_on, simulated
from nvib_jax.attention.inputs import FORMS, Memory, causal_mask, checked_mixture, make_memory
from nvib_jax.attention.xla import attention_weights
from nvib_jax.checks import check_choice, check_shapes
from nvib_jax.mesh import device, per_device
from nvib_jax.types import Mixture, typed

__all__ = [
    "FORMS",
    "IMPLEMENTATIONS",
    "Memory",
    "attend",
    "attention_weights",
    "causal_mask",
    "denoising_attention",
    "make_memory",
]

# "pallas" stands for the kernel of the current platform. The names with a platform also allow
# compiling ahead of time, for a TPU or GPU that this machine does not have.
IMPLEMENTATIONS = ("reference", "xla", "pallas", "pallas_tpu", "pallas_gpu", "cudnn")


def attend(
    query: jax.Array,
    memory: Memory,
    *,
    value_bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    position_bias: jax.Array | None = None,
    causal: bool = False,
    with_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """Attend to a `Memory` that was made before, as cached decoding does at every step.

        out = softmax(q k + bias) v    plus two terms of width D if the form has them (`inputs`)

    Args:
      query: projected, unscaled, shape (B, T, H, E).
      memory: from `make_memory`, or one that grows (`nvib_jax.attention.cache`).
      value_bias: shape (H, E), or None.
      mask: bool, shape (B, T, S), or None. At least one component a query must be visible.
      position_bias: as in `denoising_attention`.
      causal: query t sees component 0 and the components up to t + S - T, on top of the mask.
      with_lse: as in `denoising_attention`.
      implementation: as in `denoising_attention`, except "reference", which takes no memory.

    Returns:
      shape (B, T, H, E); with `with_lse`, a pair of it and the log-sum-exp.

    Raises:
      ValueError: naming the argument, what it is and what it should be.
      NotImplementedError: the implementation you named cannot do what you ask.

    >>> lengths, kernel = jnp.array([3]), jnp.ones((8, 2, 4))
    >>> drawn = sample_prior(jax.random.key(0), Prior.standard(8), lengths, max_length=3)
    >>> memory = make_memory(drawn, key_kernel=kernel, value_kernel=kernel)
    >>> attend(jnp.ones((1, 5, 2, 4)), memory).shape
    (1, 5, 2, 4)
    """
    memory = typed("memory", memory, Memory)
    check_shapes(
        **{
            "query": (query, "float B T H E"),
            "memory.key": (memory.key, "float B H S E"),
            "value_bias": (value_bias, "float H E or None"),
            "mask": (mask, "bool B T S or None"),
            "position_bias": (position_bias, _bias_axes(position_bias)),
        }
    )
    if implementation is not None:
        check_choice("implementation", implementation, IMPLEMENTATIONS)
    more = {"mask": mask, "position_bias": position_bias}
    arrays = {key: jnp.asarray(array) for key, array in more.items() if array is not None}
    name = implementation
    if name is None:
        components, wide = memory.key.shape[2], memory.shared_value is not None
        name = fastest(device()[1], components, wide)
    try:
        outs = _on_mesh(_primitive(name, arrays, with_lse), query, memory, arrays, causal)
    except NotImplementedError:
        if implementation is not None:
            raise
        # "xla" can do everything, so it replaces an automatic choice that cannot do this.
        outs = _on_mesh(partial(xla.attend, with_lse=with_lse), query, memory, arrays, causal)
    return _finished(outs, value_bias, with_lse)


def _finished(outs: tuple[jax.Array, ...], value_bias: jax.Array | None, with_lse: bool) -> Any:
    """What the public functions return of (out, lse (B, T, H, 1))."""
    out = outs[0]
    out = out if value_bias is None else out + value_bias.astype(out.dtype)[None, None]
    return (out, outs[1][..., 0].astype(jnp.float32)) if with_lse else out


def _bias_axes(position_bias: Any) -> str:
    """The shape that a position bias should have, one for all sentences or one for each."""
    return "float B H T S" if getattr(position_bias, "ndim", 3) == 4 else "float H T S or None"


def denoising_attention(
    query: jax.Array,
    mixture: Mixture,
    *,
    key_kernel: jax.Array,
    value_kernel: jax.Array,
    value_bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    position_bias: jax.Array | None = None,
    causal: bool = False,
    form: str = "exact",
    with_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """Attention as denoising: the mean of p(v | u), where `v ~ F` and `u = v + N(0, sqrt(E))`.

        DAttn(u; F) = E_{v~F}[ N(u; v, sqrt(E) I) v ] / E_{v~F}[ N(u; v, sqrt(E) I) ]

    with `u_h = W_k,h^T q_h` for each head, and the result projected by `W_v,h`.

    Args:
      query: projected but not scaled, shape (B, T, H, E).
      mixture: what is attended to, S components in R^D. For form "expected_logit" give it the
        weights of `expected(posterior, log_weights="geometric")`; `read` gives both.
      key_kernel: shape (D, H, E). A bias on the keys would cancel, so there is none.
      value_kernel: shape (D, H, E).
      value_bias: shape (H, E), or None.
      mask: bool, shape (B, T, S), True = visible, on top of `mixture.mask`. At least one component
        a query must be visible (component 0 always is, unless you hide it).
      position_bias: finite numbers that are added to the logits, shape (H, T, S), the same for all
        sentences (relative positions, as T5 and ALiBi have them), or (B, H, T, S). None is 0.
      causal: query t sees component 0 and the components up to t + S - T, on top of the masks:
        with S = T + 1, a token's own component and those before it.
      form: "exact" is the definition; "published" drops a query term, as released code does;
        "simplified" drops the log-determinant and the interpolation; "expected_logit" averages
        the logit of a draw. For impulses all four are equal. `nvib_jax.attention.inputs` has the
        equations.
      with_lse: return the log-sum-exp of the logits too, with which attention to two mixtures can
        be joined: (out_1, lse_1) and (out_2, lse_2) give `out_1 + rho (out_2 - out_1)`, where
        `rho = sigmoid(lse_2 - lse_1)`. The logits are those of `nvib_jax.attention.inputs`.
      implementation: "reference" (the equation as written), "xla" (in chunks, on any platform),
        "pallas" (the kernel for the current TPU or GPU; "pallas_tpu" and "pallas_gpu" name one),
        "cudnn" (NVIDIA's library, for the forms without terms of width D), or None for the fastest
        one that can do it (`nvib_jax.attention.choice`). Only "reference" and "xla" take a
        `position_bias` and return a log-sum-exp.

    Returns:
      shape (B, T, H, E), the query's dtype; softmax and biases are float32 throughout. With
      `with_lse`, a pair of it and the log-sum-exp, float32, shape (B, T, H).

    Raises:
      ValueError: naming the argument, what it is and what it should be.
      NotImplementedError: the implementation you named cannot do what you ask.

    Source: Henderson & Fehr (2023), arXiv 2207.13529; `nvib_jax.attention.inputs` has the forms.

    >>> mean = jnp.array([[[0.0, 0.0], [1.0, 0.5], [-0.5, 1.0]]])
    >>> alpha = jnp.array([[1.0, 2.0, 0.5]])
    >>> points = Mixture(mean, None, jnp.log(alpha / 3.5), jnp.ones((1, 3), bool))
    >>> query = jnp.array([1.0, -0.5]).reshape(1, 1, 1, 2)
    >>> identity = jnp.eye(2).reshape(2, 1, 2)
    >>> out = denoising_attention(query, points, key_kernel=identity, value_kernel=identity)
    >>> print(out.ravel())
    [0.6298 0.3741]
    """
    mixture = checked_mixture(mixture, form)
    check_shapes(
        **{
            "query": (query, "float B T H E"),
            "mixture.mean": (mixture.mean, "B S D"),
            "key_kernel": (key_kernel, "float D H E"),
            "value_kernel": (value_kernel, "float D H E"),
            "value_bias": (value_bias, "float H E or None"),
            "mask": (mask, "bool B T S or None"),
            "position_bias": (position_bias, _bias_axes(position_bias)),
        }
    )
    kernels = {"key_kernel": key_kernel, "value_kernel": value_kernel}
    if implementation == "reference":
        if causal:
            seen = causal_mask(query.shape[1], mixture.mean.shape[1])[None]
            mask = seen if mask is None else seen & mask
        out, lse = reference.attend(
            query, mixture, **kernels, mask=mask, position_bias=position_bias, form=form
        )
        return _finished((out.astype(query.dtype), lse), value_bias, with_lse)
    kernels = {name: kernel.astype(query.dtype) for name, kernel in kernels.items()}
    return attend(
        query,
        make_memory(mixture, **kernels, form=form),
        value_bias=value_bias,
        mask=mask,
        position_bias=position_bias,
        causal=causal,
        with_lse=with_lse,
        implementation=implementation,
    )


_AXES: dict[str, tuple[str | None, ...]] = {
    "query": ("batch", None, "heads", None),
    "mask": ("batch", None, "components"),
    "position_bias": ("heads", None, "components"),
    "key": ("batch", "heads", "components", None),
    "value": ("batch", "heads", "components", None),
    "bias": ("batch", "components"),
    "shared_key": ("batch", "components", None),
    "shared_value": ("batch", "components", None),
    "key_kernel": (None, "heads", None),
    "value_kernel": (None, "heads", None),
}


def _on_mesh(
    function: Any, query: jax.Array, memory: Memory, more: dict[str, jax.Array], causal: bool
) -> tuple[jax.Array, ...]:
    """Run an implementation; on a mesh, every device runs it on its own sentences and heads.

    `more` are the arrays, by name, that not every call has: mask and position_bias.
    """
    fields = {name: array for name, array in vars(memory).items() if array is not None}

    def run(query: jax.Array, **arrays: jax.Array) -> tuple[jax.Array, ...]:
        given = {name: arrays.pop(name) for name in more}
        outs = function(query, Memory(**arrays), causal=causal, **given)
        return outs if isinstance(outs, tuple) else (outs,)

    names = dict(_AXES)
    if "position_bias" in more and more["position_bias"].ndim == 4:
        names["position_bias"] = ("batch", *_AXES["position_bias"])
    return per_device(run, {"query": query, **fields, **more}, names, like="query")


def _primitive(name: str, more: dict[str, jax.Array], with_lse: bool) -> Any:
    """The `attend` function that an implementation's name stands for on the current platform.

    `more` as in `_on_mesh`; the function returns the result, or a tuple of it and the log-sum-exp.
    """
    platform = device()[0]
    if name == "reference":
        raise NotImplementedError(
            "implementation 'reference' takes no memory; call denoising_attention with the mixture"
        )
    if name == "pallas":
        if platform not in ("tpu", "gpu"):
            raise NotImplementedError(
                f"implementation 'pallas' has kernels for TPU and GPU; this is {platform}"
            )
        name = f"pallas_{platform}"
    if name != "xla" and "position_bias" in more:
        raise NotImplementedError(f"implementation {name!r} takes no position_bias; use 'xla'")
    if name != "xla" and with_lse:
        raise NotImplementedError(f"implementation {name!r} returns no log-sum-exp; use 'xla'")
    # These are imported late, because Pallas takes a third of a second to import and a CPU never
    # needs it.
    if name == "pallas_tpu":
        from nvib_jax.attention import pallas_tpu

        return pallas_tpu.attend if simulated() else _at_home(pallas_tpu.attend, "TPUs", name)
    if name == "pallas_gpu":
        from nvib_jax.attention import pallas_gpu

        return _at_home(pallas_gpu.attend, "GPUs", name)
    if name == "cudnn":
        from nvib_jax.attention import cudnn

        return cudnn.attend
    return partial(xla.attend, with_lse=with_lse)


def _at_home(function: Any, home: str, name: str) -> Any:
    """A kernel that raises an error naming its platform (`home`) when it is compiled for a CPU."""

    def run(query: jax.Array, *others: Any, **options: Any) -> jax.Array:
        # On a CPU the kernel is traced first, so that arguments which it refuses on any platform
        # are reported before the fact that this platform is the wrong one.
        if device()[0] == "cpu":
            jax.eval_shape(lambda q: function(q, *others, **options), query)
        return function(runs_on(query, home, name), *others, **options)

    return run
