"""Where arrays live on a mesh: names for their axes, and one table from names to devices.

The mesh is JAX's own context (`with jax.set_mesh(mesh)`). Where it has the three axes below, of
type Auto, what is here lays arrays out over it; without a mesh, on one of yours, or inside your own
`shard_map` it does nothing. What is left open the compiler decides.

On a mesh of yours with *explicit* axes (what `jax.make_mesh` makes by default) the layout of an
array is part of its type, and jax refuses operations whose result could be laid out in two ways.
`alike`, `along`, `by_rows` and `per_part` say which one is meant, where the batch is divided.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
# The axis of an array -> the mesh axes that share it. `data` and `fsdp` both split the batch;
# `fsdp` splits parameters as well, which are gathered where they are used; `tensor` splits the work
# on one sentence. Components are never split: every softmax is over all of them.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "components": (),
}
OPEN = P.UNCONSTRAINED  # the name of an axis that the compiler decides on


def ambient() -> Any:
    """The mesh at hand if it is one of ours with several devices, otherwise None."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}
    return mesh if ours and mesh.size > 1 else None


def device() -> tuple[str, str]:
    """(platform, kind) of what is computed on: the mesh at hand, which need not be here."""
    there = jax.sharding.get_abstract_mesh().abstract_device
    if there is None:
        there = jax.devices()[0]
    return there.platform, there.device_kind


def ways(mesh: Any, name: str | None) -> int:
    """Into how many parts a mesh cuts an axis of this name; None is an axis that stays whole."""
    return 1 if name is None else math.prod(mesh.shape[axis] for axis in RULES[name])


def spec(mesh: Any, names: tuple[Any, ...], shape: tuple[int, ...]) -> P:
    """The layout of an array with axes of these names; an axis that does not divide stays whole."""

    def entry(name: Any, size: int) -> Any:
        if name is None or name is OPEN:
            return name
        return RULES[name] or None if size % ways(mesh, name) == 0 else None

    return P(*(entry(name, size) for name, size in zip(names, shape, strict=True)))


def axes_in(entry: Any) -> tuple[str, ...]:
    """The mesh axes in an entry of a `PartitionSpec`, which makes a string of a single one."""
    return (entry,) if isinstance(entry, str) else entry or ()


def constrain(x: jax.Array, *names: Any) -> jax.Array:
    """The same array, laid out over the mesh at hand by the names of its axes.

    Args:
      x: any array.
      names: for each axis one of `RULES`, None (whole) or `OPEN`.
    """
    mesh = ambient()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, spec(mesh, names, x.shape))


def per_device(
    function: Callable[..., Any],
    arrays: Mapping[str, jax.Array],
    names: Mapping[str, tuple[str | None, ...]],
    *,
    like: str | None,
    over: tuple[str, ...] = MESH_AXES,
) -> Any:
    """`function(**arrays)`, every device at its own part: a `shard_map` on the mesh at hand.

    For kernels, which no compiler can divide, and for loops whose sums should meet once.

    Args:
      function: of arrays by name; without a mesh it is simply called.
      arrays: by name.
      names: of the axes of each array; as in `constrain`, without `OPEN`.
      like: the array whose axes the result has; None where the result is the same everywhere.
      over: the mesh axes that are divided by hand; the others stay the compiler's.
    """
    mesh = ambient()
    if mesh is not None and set(over) < set(MESH_AXES):
        # Beside axes that are the compiler's own it refuses a sum over an axis of one device.
        over = tuple(axis for axis in over if mesh.shape[axis] > 1)
    if mesh is None or not over:
        return function(**arrays)

    def layout(name: str) -> P:
        full = spec(mesh, names[name], arrays[name].shape)
        return P(*(tuple(a for a in axes_in(entry) if a in over) or None for entry in full))

    run = jax.shard_map(
        lambda arrays: function(**arrays),
        in_specs=({name: layout(name) for name in arrays},),
        out_specs=P() if like is None else layout(like),
        axis_names=set(over),
    )
    return run(dict(arrays))


def summed(x: jax.Array) -> jax.Array:
    """Inside `per_device`: the sum over the devices that hold different values."""
    axes = tuple(sorted(jax.typeof(x).manual_axis_type.varying))
    return jax.lax.psum(x, axes) if axes else x


def gathered(x: jax.Array, axis: int, name: str) -> jax.Array:
    """Inside `per_device`: an array with the whole of an axis of this name; its gradient is shared.

    Each device adds its part of a gradient to the part that it holds: half the traffic of all the
    gradient on all devices.
    """
    axes = tuple(a for a in RULES[name] if a in jax.typeof(x).manual_axis_type.varying)
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


# ---- explicit axes


def divided(x: jax.Array) -> Any:
    """The `NamedSharding` in an array's type where explicit axes divide it, otherwise None."""
    sharding = jax.typeof(x).sharding
    return sharding if any(entry is not None for entry in sharding.spec) else None


def alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, which have as many axes each, all divided as the first that is divided."""
    found = next((d for a in arrays if (d := divided(a)) is not None), None)
    return [a if found is None or divided(a) == found else reshard(a, found) for a in arrays]


def along(like: jax.Array, *, before: int = 0, after: int = 0) -> Any:
    """The layout of a new array with the axes of `like` and undivided ones before and after, or
    None: what `jax.random` needs, so that each device draws its own part only.
    """
    sharding = divided(like)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, P(*[None] * before, *sharding.spec, *[None] * after))


def by_rows(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`product` of x (B, ..., D) with all leading axes as one; its other axes are kept.

    The same numbers. But the gradient of a product over two leading axes asks XLA for a transposed
    copy of every activation, which on CPUs takes as long as the product; over one it does not.
    """
    sharding, leading = divided(x), x.shape[:-1]
    out = product(x.reshape(-1, x.shape[-1]))
    shape = (*leading, *out.shape[1:])
    if sharding is None:
        return out.reshape(shape)
    # Which of the leading axes was divided cannot be read off the rows.
    spec = P(*sharding.spec[:-1], *jax.typeof(out).sharding.spec[1:])
    return jnp.reshape(out, shape, out_sharding=NamedSharding(sharding.mesh, spec))


def per_part(
    function: Callable[..., Any], arrays: Mapping[str, jax.Array], names: Mapping[str, Any]
) -> Any:
    """`function(**arrays)`, a sum over the batch, in a `shard_map` over the explicit axes of it.

    Each device adds up its own part in its own loop, and the parts meet once.

    Args:
      function: of arrays by name; what it gives for parts of the batch adds up.
      arrays: by name; where none with a batch is divided, the function is simply called.
      names: of the axes of each array, as in `per_device`; only "batch" is divided here.
    """
    batches = [a for name, a in arrays.items() if names[name][0] == "batch"]
    layouts = [found for a in batches if (found := divided(a)) is not None]
    entries = {found.spec[0] for found in layouts} - {None}
    if not entries:
        return function(**arrays)
    (entry,) = entries if len(entries) == 1 else (layouts[0].spec[0],)
    mesh = layouts[0].mesh

    def layout(name: str) -> P:
        return P(entry) if names[name][0] == "batch" else P()

    run = jax.shard_map(
        lambda arrays: jax.lax.psum(function(**arrays), axes_in(entry)),
        mesh=mesh,
        in_specs=({name: layout(name) for name in arrays},),
        out_specs=P(),
        axis_names=set(axes_in(entry)),
    )
    return run(dict(arrays))
