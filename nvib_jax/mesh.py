"""Where arrays live on a mesh: names for their axes, and one table from names to devices.

The mesh is JAX's own context (`with jax.set_mesh(mesh)`). If it has the three axes below, of type
Auto, the functions here lay arrays out over it, and the compiler decides whatever they leave open.
Without a mesh, on a mesh of your own, or inside your own `shard_map` they do nothing.

On a mesh of your own with *explicit* axes (the default of `jax.make_mesh`) the layout of an array
is part of its type, and jax refuses operations whose result could be laid out in two ways.
`alike`, `along`, `by_rows` and `per_part` choose the layout there if the batch is divided.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, reshard
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
# The name of an array's axis -> the mesh axes it is divided over. `data` and `fsdp` both divide the
# batch. `fsdp` also divides parameters, which are gathered where they are used. `tensor` divides
# the work on one sentence. Components are never divided, because every softmax needs all of them.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "components": (),
}
OPEN = P.UNCONSTRAINED  # stands for the name of an axis whose layout the compiler decides


def ambient() -> Any:
    """The current mesh if it has `MESH_AXES`, all Auto, and several devices; otherwise None."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}
    return mesh if ours and mesh.size > 1 else None


def device() -> tuple[str, str]:
    """(platform, kind) of the devices that will compute.

    They are those of the current mesh, which may be devices that this machine does not have (when
    compiling ahead of time), or else the first local device.
    """
    there = jax.sharding.get_abstract_mesh().abstract_device
    if there is None:
        there = jax.devices()[0]
    return there.platform, there.device_kind


def ways(mesh: Any, name: str | None) -> int:
    """Into how many parts a mesh cuts an axis of this name; None is an axis that stays whole."""
    return 1 if name is None else math.prod(mesh.shape[axis] for axis in RULES[name])


def spec(mesh: Any, names: tuple[Any, ...], shape: tuple[int, ...]) -> P:
    """The layout of an array whose axes have these names; an axis that cannot be divided evenly
    stays whole.
    """

    def entry(name: Any, size: int) -> Any:
        if name is None or name is OPEN:
            return name
        return RULES[name] or None if size % ways(mesh, name) == 0 else None

    return P(*(entry(name, size) for name, size in zip(names, shape, strict=True)))


def axes_in(entry: Any) -> tuple[str, ...]:
    """The mesh axes in an entry of a `PartitionSpec`, which is a string if there is only one."""
    return (entry,) if isinstance(entry, str) else entry or ()


def constrain(x: jax.Array, *names: Any) -> jax.Array:
    """The same array, laid out over the current mesh by the names of its axes.

    Args:
      x: any array.
      names: for each axis a key of `RULES`, None (whole) or `OPEN`.
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
    """`function(**arrays)` in a `shard_map` on the current mesh: every device has its own part.

    It is for kernels, which the compiler cannot divide, and for loops whose sums should be added
    up across devices once and not in every iteration.

    Args:
      function: takes the arrays by name; without a mesh it is simply called.
      arrays: the arguments, by name.
      names: the names of each array's axes, as in `constrain`, but without `OPEN`.
      like: the array whose layout the result has; None if the result is the same on every device.
      over: the mesh axes that the `shard_map` divides; the compiler keeps the others.
    """
    mesh = ambient()
    if mesh is not None and set(over) < set(MESH_AXES):
        # If the compiler keeps some axes, it refuses a sum over a manual axis with one device.
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
    """Inside `per_device`: the sum of x over the mesh axes along which devices hold parts of it."""
    axes = tuple(sorted(jax.typeof(x).manual_axis_type.varying))
    return jax.lax.psum(x, axes) if axes else x


def gathered(x: jax.Array, axis: int, name: str) -> jax.Array:
    """Inside `per_device`: gather the whole of an axis of this name from all devices.

    Its transpose is a reduce-scatter: each device receives the gradient of its own part only, which
    is half the traffic of an all-reduce.
    """
    axes = tuple(a for a in RULES[name] if a in jax.typeof(x).manual_axis_type.varying)
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True) if axes else x


# ---- explicit axes


def divided(x: jax.Array) -> Any:
    """The `NamedSharding` in an array's type if explicit mesh axes divide it, otherwise None."""
    sharding = jax.typeof(x).sharding
    return sharding if any(entry is not None for entry in sharding.spec) else None


def alike(*arrays: jax.Array) -> list[jax.Array]:
    """The arrays, all with the layout of the first one that is divided. They need equal ndim."""
    found = next((d for a in arrays if (d := divided(a)) is not None), None)
    return [a if found is None or divided(a) == found else reshard(a, found) for a in arrays]


def along(like: jax.Array, *, before: int = 0, after: int = 0) -> Any:
    """The layout for a new array that has the axes of `like` and undivided ones before and after.

    `jax.random` takes it as `out_sharding`, so that each device draws its own part only. None if
    `like` is not divided.
    """
    sharding = divided(like)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, P(*[None] * before, *sharding.spec, *[None] * after))


def by_rows(product: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`product` of x (B, ..., D), computed with all leading axes merged to one.

    The numbers are the same. It is faster, because the gradient of a product over two leading axes
    makes XLA copy every activation transposed, which takes as long as the product on CPUs; with one
    leading axis it does not.
    """
    sharding, leading = divided(x), x.shape[:-1]
    out = product(x.reshape(-1, x.shape[-1]))
    shape = (*leading, *out.shape[1:])
    if sharding is None:
        return out.reshape(shape)
    # The merged rows do not tell which leading axis was divided, so x's own layout says it.
    spec = P(*sharding.spec[:-1], *jax.typeof(out).sharding.spec[1:])
    return jnp.reshape(out, shape, out_sharding=NamedSharding(sharding.mesh, spec))


def per_part(
    function: Callable[..., Any], arrays: Mapping[str, jax.Array], names: Mapping[str, Any]
) -> Any:
    """`function(**arrays)`, a sum over the batch, in a `shard_map` over the batch's explicit axes.

    Each device runs the function on its own part of the batch, and one `psum` adds up the results.

    Args:
      function: takes the arrays by name; the results for parts of the batch must add up to the
        result for the whole batch.
      arrays: the arguments, by name. If no batch is divided, the function is simply called.
      names: the names of each array's axes, as in `per_device`; only "batch" is divided here.
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

    def placed(name: str, array: jax.Array) -> jax.Array:
        # A batch may come whole beside one that is divided, and `shard_map` takes none but its own.
        found, spec = divided(array), P(entry, *[None] * (array.ndim - 1))
        if names[name][0] != "batch" or (found is not None and found.spec[0] == entry):
            return array
        return reshard(array, NamedSharding(mesh, spec))

    run = jax.shard_map(
        lambda arrays: jax.lax.psum(function(**arrays), axes_in(entry)),
        mesh=mesh,
        in_specs=({name: layout(name) for name in arrays},),
        out_specs=P(),
        axis_names=set(axes_in(entry)),
    )
    return run({name: placed(name, array) for name, array in arrays.items()})
