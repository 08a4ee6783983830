"""A clear error for a TPU or GPU kernel that is lowered for a CPU.

The error is raised at lowering and not at tracing, because only lowering knows the platform. A
kernel may rightly be traced on a machine without its device, in order to be compiled for one
(`jax.jit(f).trace(...).lower(lowering_platforms=("tpu",))`).
"""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_runs_on = Primitive("nvib_runs_on")  # the identity, except that lowering it for a CPU is an error


def runs_on(x: jax.Array, home: str, name: str) -> jax.Array:
    """Return `x` unchanged, marked as the input of an implementation that cannot run on a CPU.

    Args:
      x: any array.
      home: the platform the implementation runs on, in words for the error.
      name: the implementation's name.

    Raises:
      NotImplementedError: when the computation is compiled for a CPU.
    """
    return _runs_on.bind(x, home=home, name=name)


def simulated() -> bool:
    """Whether `pltpu.force_tpu_interpret_mode` is on: then TPU kernels run on a CPU."""
    from jax.experimental import pallas as pl

    def copy(source: Any, target: Any) -> None:
        target[...] = source[...]

    # JAX has no public way to ask, but a kernel call that is traced now carries the mode.
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    call = jax.make_jaxpr(pl.pallas_call(copy, out_shape=x))(x).eqns[0]
    return bool(call.params.get("interpret"))


def _same(context: Any, x: Any, *, home: str, name: str) -> list[Any]:
    return [x]


def _refused(context: Any, x: Any, *, home: str, name: str) -> NoReturn:
    raise NotImplementedError(f"implementation {name!r} runs on {home}; this is a CPU")


def _batched(arrays: tuple, axes: tuple, **words: str) -> tuple[jax.Array, Any]:
    return _runs_on.bind(*arrays, **words), axes[0]


def _jvp(primals: tuple, tangents: tuple, **words: str) -> tuple[jax.Array, Any]:
    return _runs_on.bind(*primals, **words), tangents[0]


_runs_on.def_impl(lambda x, **words: jax.jit(lambda x: _runs_on.bind(x, **words))(x))
_runs_on.def_abstract_eval(lambda x, **words: x)
ad.primitive_jvps[_runs_on] = _jvp
batching.primitive_batchers[_runs_on] = _batched
mlir.register_lowering(_runs_on, _same)
mlir.register_lowering(_runs_on, _refused, platform="cpu")
