"""Makes the copies of an array on several devices equal, and counts where they were not.

Each device updates its own copy of a parameter. If a bit differs on one device, it stays different,
and a checkpoint, which is read from some of the devices, is not the state of all of them. So before
a checkpoint all devices take the first copy: the run then continues with exactly what was saved.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from nvib_jax.checks import vary_alike
from nvib_jax.mesh import MESH_AXES, axes_in, summed


def make_agree(mesh: jax.sharding.Mesh, shardings: Any) -> Callable[[Any], tuple[Any, jax.Array]]:
    """A jitted function: tree -> (the tree of first copies, how many numbers differed from them).

    Args:
      mesh: with the axes `MESH_AXES`.
      shardings: of the tree. The function donates the tree.
    """
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)

    def agree(tree: Any) -> tuple[Any, jax.Array]:
        leaves, treedef = jax.tree.flatten(tree)
        pairs = [
            _first_copy(leaf, sharding.spec)
            for leaf, sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
        ]
        firsts, counts = zip(*pairs, strict=True)
        return jax.tree.unflatten(treedef, firsts), sum(counts, jnp.int32(0))

    run = jax.shard_map(agree, mesh=mesh, in_specs=(specs,), out_specs=(specs, P()))
    return jax.jit(run, donate_argnums=0)


def _first_copy(x: jax.Array, spec: P) -> tuple[jax.Array, jax.Array]:
    """(the copy on the first device that holds this part, how many numbers differ from it)."""
    split = [axis for entry in spec for axis in axes_in(entry)]
    copied = tuple(axis for axis in MESH_AXES if axis not in split)
    if not copied:
        return x, jnp.int32(0)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    rank = sum((jax.lax.axis_index(axis) for axis in copied), jnp.int32(0))
    first = jax.lax.psum(jnp.where(rank == 0, bits, jnp.zeros_like(bits)), copied)
    # `shard_map`'s types already claim that these copies are equal, and that is what we want to
    # check. Mark them as possibly different, so that each device compares its own.
    mine, _ = vary_alike((bits, rank))
    unequal = summed(jnp.sum(mine != first, dtype=jnp.int32))
    return jax.lax.bitcast_convert_type(first, x.dtype), unequal
