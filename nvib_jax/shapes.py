"""Shape checks: one sentence with the argument's name, the shape it has and the one it should have.

Every public function checks its arrays here, at trace time, so the check costs nothing under jit.
The letters are those of `nvib_jax.types`.
"""

from typing import Any

import jax
import jax.numpy as jnp


def check_shapes(**arguments: tuple[Any, str]) -> dict[str, int]:
    """Bind dimension letters to sizes over several arrays, or raise.

    Args:
      **arguments: name -> (array or None, specification such as `"B S D"`). `None` is skipped.
        A digit in a specification is a fixed size.

    Returns:
      The size of every letter.

    Raises:
      ValueError: naming the argument, its shape and the shape that was wanted.
    """
    sizes: dict[str, int] = {}
    for name, (array, spec) in arguments.items():
        if array is None:
            continue
        axes, shape = spec.split(), jnp.shape(array)
        fits = len(axes) == len(shape)
        for axis, size in zip(axes, shape, strict=False):
            wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size) if fits else size
            fits = fits and wanted == size
        if not fits:
            known = ", ".join(str(sizes[a]) if a in sizes and not a.isdigit() else a for a in axes)
            known += "," if len(axes) == 1 else ""  # as Python writes a tuple
            letters = f"[{', '.join(axes)}]"
            more = f" = ({known})" if known.rstrip(",") != ", ".join(axes) else ""
            raise ValueError(f"{name} has shape {tuple(shape)}; wanted {letters}{more}")
    return sizes


def check_mask(name: str, mask: Any) -> None:
    """Masks are boolean, True = valid: a float or integer mask is refused, not guessed at."""
    if mask is not None and jnp.asarray(mask).dtype != jnp.bool_:
        raise ValueError(f"{name} has dtype {jnp.asarray(mask).dtype}; wanted bool, True = valid")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """An option out of a short list."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}")


def varying(tree: Any) -> frozenset[str]:
    """Mesh axes of an enclosing `shard_map` along which any of the arrays differs."""
    leaves = jax.tree.leaves(tree)
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in leaves))


def vary_alike(tree: Any) -> Any:
    """All arrays varying along the mesh axes of any: a gradient of what is shared is summed there.

    For functions with gradients of their own, which `shard_map` wants of the types of the inputs.
    """
    axes = varying(tree)

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
