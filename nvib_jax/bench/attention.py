"""Benchmarks of attention: every implementation beside the plain one, forward and backward.

All implementations of a group have the same count of operations, so that their shares of the peak
can be compared; a multiply-add is two. With H heads of width E = D/H, the algebra of
`attention.inputs` needs

    keys and values           4 B S D^2
    logits, weighted values   4 B T S D
    exact, published          4 B T D^2 + 2 B T S H D    queries into R^D and back, share kept
    exact                     2 B T S H D                squares of queries

and two more products for each of these in the backward pass.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.attention import IMPLEMENTATIONS, attend, denoising_attention, make_memory
from nvib_jax.bench import plain
from nvib_jax.bench.timing import Case, compile_program
from nvib_jax.checks import check_choice
from nvib_jax.types import Mixture

Form = Literal["impulse", "exact", "published", "simplified", "expected_logit"]
Pass = Literal["forward", "backward"]
Arrays = dict[str, jax.Array]
_CHECKED = 64  # the error is measured on this many queries of the first row


@dataclass(frozen=True)
class Shape:
    """B rows, H heads, T queries, S components, width D."""

    batch: int
    heads: int
    queries: int
    components: int
    dim: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} T{self.queries} S{self.components} D{self.dim}"


SHAPES = {
    "small": Shape(8, 8, 128, 128, 512),
    "medium": Shape(8, 8, 1024, 1024, 512),
    "long": Shape(1, 8, 8192, 8192, 512),
    "step": Shape(64, 8, 1, 128, 512),
}


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Denoising attention: implementations x forms x shapes x dtypes x passes."""

    shape: tuple[Literal["small", "medium", "long", "step"], ...] = ("small",)
    """small (T = S = 128), medium (1024), long (8192), step (T = 1, as in decoding)."""
    form: tuple[Form, ...] = ("impulse", "exact", "published", "simplified", "expected_logit")
    """Forms; impulse is a drawn mixture, where all forms are the same."""
    implementation: tuple[str, ...] = ()
    """plain, reference, xla, pallas, cudnn, kept (attend to a memory made before, step only); none
    means all that run compiled on the platform at hand."""
    dtype: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """dtypes of queries and kernels; mixtures are float32."""
    passes: tuple[Pass, ...] = ("forward", "backward")
    """forward alone, or backward: forward and the gradients of everything."""

    def groups(self) -> Iterator[list[Case]]:
        """The cases that are timed in turns, a group for each form, shape, dtype and pass."""
        names = self.implementation or default_implementations()
        for name in names:
            check_choice("implementation", name, ("plain", *IMPLEMENTATIONS, "kept"))
        for shape in self.shape:
            for dtype in self.dtype:
                for form in self.form:
                    for which in self.passes:
                        yield _group(shape, SHAPES[shape], form, dtype, which, names)


def default_implementations() -> tuple[str, ...]:
    """The implementations that run compiled on this platform, with "plain" first."""
    kernels = {"tpu": ("pallas",), "gpu": ("cudnn", "pallas")}.get(jax.default_backend(), ())
    return ("plain", "reference", "xla", *kernels, "kept")


def flops(shape: Shape, form: str, which: str = "forward", *, kept: bool = False) -> float:
    """Operations that a call needs; `kept` leaves out computing the keys and values."""
    s = shape
    products = 4.0 * s.batch * s.queries * s.components * s.dim
    if not kept:
        products += 4.0 * s.batch * s.components * s.dim**2
    shared = 2.0 * s.batch * s.queries * s.components * s.heads * s.dim
    if form in ("exact", "published"):
        products += 4.0 * s.batch * s.queries * s.dim**2 + shared
    if form == "exact":
        products += shared
    return products * (1 if which == "forward" else 3)


def inputs(shape: Shape, form: str, dtype: str, seed: int = 0) -> Arrays:
    """Random queries, mixtures, kernels and cotangents; none are zero."""
    rng = np.random.default_rng(seed)
    s, width = shape, shape.dim // shape.heads

    def normal(*size: int, scale: float = 1.0, kind: str = dtype) -> jax.Array:
        return jnp.asarray(rng.normal(size=size, scale=scale).astype(np.float32)).astype(kind)

    drawn = {
        "query": normal(s.batch, s.queries, s.heads, width),
        "mean": normal(s.batch, s.components, s.dim, kind="float32"),
        "log_weights": normal(s.batch, s.components, kind="float32"),
        "key_kernel": normal(s.dim, s.heads, width, scale=s.dim**-0.5),
        "value_kernel": normal(s.dim, s.heads, width, scale=s.dim**-0.5),
    }
    if form != "impulse":
        drawn["log_variance"] = normal(s.batch, s.components, s.dim, scale=0.5, kind="float32")
    return drawn | {"cotangent": normal(s.batch, s.queries, s.heads, width)}


def implement(name: str, form: str) -> Callable[[Arrays], jax.Array]:
    """The named implementation as a function of `inputs`' arrays that returns (B, T, H, E)."""
    asked = "exact" if form == "impulse" else form

    def run(arrays: Arrays) -> jax.Array:
        kernels: Any = {name: arrays[name] for name in ("key_kernel", "value_kernel")}
        query, mixture = arrays["query"], _mixture(arrays)
        if name == "plain":
            return plain.attention(query, mixture, **kernels, form=asked)
        return denoising_attention(query, mixture, **kernels, form=asked, implementation=name)

    return run


def with_gradients(run: Callable[[Arrays], jax.Array]) -> Callable[[Arrays], dict[str, jax.Array]]:
    """A function arrays -> {"out": output, and the gradient of every array by its name}."""

    def both(arrays: Arrays) -> dict[str, jax.Array]:
        given = {name: array for name, array in arrays.items() if name != "cotangent"}
        out, pull = jax.vjp(run, given)
        return {"out": out} | pull(arrays["cotangent"])[0]

    return both


def only_forward(run: Callable[[Arrays], jax.Array]) -> Callable[[Arrays], dict[str, jax.Array]]:
    """A function arrays -> {"out": output}."""
    return lambda arrays: {"out": run(arrays)}


def truth(arrays: Arrays, form: str, which: str) -> dict[str, np.ndarray]:
    """The reference in float64, on the first row's first 64 queries only, because it is slow."""
    wrap = only_forward if which == "forward" else with_gradients
    with jax.enable_x64(True):
        exact = {name: _part(name, array).astype(jnp.float64) for name, array in arrays.items()}
        return jax.device_get(jax.jit(wrap(implement("reference", form)))(exact))


def error(
    function: Callable[[Arrays], Arrays], arrays: Arrays, want: dict[str, np.ndarray]
) -> float:
    """Largest error of a compiled function against `truth`.

    The cotangent is zero except for the queries that `truth` has, so that the whole program gives
    the gradients of those queries alone.

    Returns:
      the largest of max |difference| / max |true| over the output and each gradient.
    """
    cotangent = arrays["cotangent"]
    part = _part("cotangent", cotangent)
    cotangent = jnp.zeros_like(cotangent).at[:1, :_CHECKED].set(part)
    got = jax.device_get(function({**arrays, "cotangent": cotangent}))
    # numpy's maximum is used, because Python's may drop a NaN.
    return float(np.max([_relative(_cut(n, got[n], want[n]), want[n]) for n in want]))


def _part(name: str, array: jax.Array) -> jax.Array:
    if name.endswith("kernel"):
        return array
    return array[:1, :_CHECKED] if name in ("query", "cotangent") else array[:1]


def _cut(name: str, got: np.ndarray, want: np.ndarray) -> np.ndarray:
    return got if name.endswith("kernel") else got[:1, : want.shape[1]]


def _relative(got: np.ndarray, want: np.ndarray) -> float:
    difference = np.max(np.abs(np.asarray(got, np.float64) - want))
    return float(difference / max(float(np.max(np.abs(want))), 1e-30))


def _mixture(arrays: Arrays) -> Mixture:
    weights = arrays["log_weights"]
    return Mixture(
        arrays["mean"], arrays.get("log_variance"), weights, jnp.ones(weights.shape, bool)
    )


def _group(
    label: str, shape: Shape, form: str, dtype: str, which: str, names: tuple[str, ...]
) -> list[Case]:
    arrays = inputs(shape, form, dtype)
    labels = {"shape": f"{label}: {shape}", "form": form, "dtype": dtype, "pass": which}
    wrap = only_forward if which == "forward" else with_gradients
    want = functools.cache(lambda: truth(arrays, form, which))  # shared by all implementations

    def case(name: str) -> Case:
        function = wrap(implement(name, form))
        return Case(
            implementation=name,
            labels=labels,
            prepare=lambda: compile_program(function, arrays),
            flops=flops(shape, form, which),
            error=lambda compiled: error(compiled, arrays, want()),
        )

    cases = [case(name) for name in names if name != "kept"]
    if "kept" in names and shape.queries == 1 and which == "forward":
        cases.append(_kept(shape, form, arrays, labels, want))
    return cases


def _kept(
    shape: Shape,
    form: str,
    arrays: Arrays,
    labels: dict[str, str],
    want: Callable[[], dict[str, np.ndarray]],
) -> Case:
    """The case "kept": `attend` to a memory that was made before, as in a decoder's step."""
    asked = "exact" if form == "impulse" else form
    kernels = {name: arrays[name] for name in ("key_kernel", "value_kernel")}
    memory = jax.jit(lambda a, k: make_memory(_mixture(a), **k, form=asked))(arrays, kernels)

    def run(query: jax.Array, memory: Any) -> Arrays:
        return {"out": attend(query, memory)}

    def of_compiled(compiled: Callable[..., Arrays]) -> float:
        return error(lambda a: compiled(a["query"], memory), arrays, want())

    return Case(
        implementation="kept",
        labels=labels,
        prepare=lambda: compile_program(run, arrays["query"], memory),
        flops=flops(shape, form, kept=True),
        error=of_compiled,
    )
