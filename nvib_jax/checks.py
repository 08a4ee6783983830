"""Checks of arguments; an error is one sentence with the name, what came and what was wanted.

Every public function checks its arguments here, at trace time, so the check costs nothing under
jit. The dimension letters are those of `nvib_jax.types`.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = {
    "float": (jnp.floating, "a float dtype"),
    "int": (jnp.integer, "an integer dtype"),
    "bool": (jnp.bool_, "bool, True = valid"),
}


def check_shapes(**arguments: tuple[Any, str]) -> dict[str, int]:
    """Bind dimension letters to sizes over several arrays, or raise.

    Args:
      **arguments: name -> (array, specification). `"float B S D"` is a float array of three axes,
        `"bool B S or None"` may be None, `"B 2"` has any dtype and a last axis of size 2.

    Returns:
      The size of every letter.

    Raises:
      ValueError: naming the argument, what it is and what was wanted.
    """
    sizes: dict[str, int] = {}
    for name, (array, spec) in arguments.items():
        axes = spec.removesuffix(" or None").split()
        kind = axes.pop(0) if axes and axes[0] in _KINDS else None
        letters = f"[{', '.join(axes)}]"
        if array is None and spec.endswith(" or None"):
            continue
        if not is_array(array):
            raise ValueError(f"{name} is {described(array)}; wanted an array {letters}")
        shape = np.shape(array)
        fits = len(axes) == len(shape)
        for axis, size in zip(axes, shape, strict=False):
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size) if fits else size
            fits = fits and wanted == size
        if not fits:
            known = ", ".join(str(sizes[a]) if a in sizes and not a.isdigit() else a for a in axes)
            known += "," if len(axes) == 1 else ""  # Python writes a tuple of one with a comma
            more = f" = ({known})" if known.rstrip(",") != ", ".join(axes) else ""
            raise ValueError(f"{name} has shape {tuple(shape)}; wanted {letters}{more}")
        if kind is not None:
            check_kind(name, array, kind)
    return sizes


def is_array(value: Any) -> bool:
    """Whether a value has a shape and a dtype, or is a Python number, which counts as a scalar."""
    if isinstance(value, bool | int | float):
        return True
    return hasattr(value, "shape") and hasattr(value, "dtype")


def check_kind(name: str, array: Any, kind: str) -> None:
    """Check that a dtype is of a kind: float, integer or bool. There are no implicit casts."""
    wanted, words = _KINDS[kind]
    if isinstance(array, bool | int | float):
        dtype: Any = type(array).__name__
        fits = isinstance(array, bool) == (kind == "bool")
        fits = fits and not (kind == "int" and isinstance(array, float))
    else:
        dtype = array.dtype
        fits = jnp.issubdtype(dtype, wanted)
    if not fits:
        raise ValueError(f"{name} has dtype {dtype}; wanted {words}")


def check_number(name: str, value: Any, kind: str | None = "float") -> None:
    """A number or an array of any shape, of this kind; None is any kind."""
    if not is_array(value):
        raise ValueError(f"{name} is {described(value)}; wanted a number or an array")
    if kind is not None:
        check_kind(name, value, kind)


def listed_ints(name: str, value: Any) -> Any:
    """A list of whole numbers as an array; anything else as it is, for `check_shapes` to see."""
    if not isinstance(value, list | tuple):
        return value
    if not value:
        raise ValueError(f"{name} is {value}; wanted at least one whole number")
    return jnp.asarray(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return a static whole number as a Python int, after checking that it is at least `least`."""
    try:
        count = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:  # a float, a string, or a number that jit traces
        count = None
    if count is None:
        what = "traced" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ValueError(f"{name} is {what}; wanted a whole number of at least {least}")
    if count < least:
        raise ValueError(f"{name} is {count}; wanted at least {least}")
    return count


def check_key(key: Any) -> None:
    """Check that a value is a PRNG key from `jax.random.key` or `jax.random.PRNGKey`."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or jnp.issubdtype(dtype, jnp.uint32)
    ):
        raise ValueError(f"key is {described(key)}; wanted a PRNG key, as of jax.random.key(0)")


def described(value: Any) -> str:
    """A few words that describe a wrong argument in an error."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            return "a PRNG key"
        return f"an array of shape {np.shape(value)}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def concrete(array: Any) -> np.ndarray | None:
    """The values of an array, or None if they are not known because jit traces the array."""
    if isinstance(array, jax.core.Tracer):
        return None
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None  # other processes hold parts of it
    return np.asarray(array)


def check_some(name: str, mask: Any) -> None:
    """Check that a mask shows something, if its values are known."""
    values = concrete(mask)
    if values is not None and not values.any():
        raise ValueError(f"{name} is False everywhere; wanted at least one valid token")


def varying(tree: Any) -> frozenset[str]:
    """Mesh axes of an enclosing `shard_map` along which any of the arrays differs."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in leaves))


def vary_alike(tree: Any) -> Any:
    """Mark all arrays as varying along every mesh axis along which any of them varies.

    Functions with a custom gradient need it inside `shard_map`, which wants a gradient to vary as
    its input does. The transpose of the marking sums the gradient of a shared array over devices.
    """
    axes = varying(tree)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
