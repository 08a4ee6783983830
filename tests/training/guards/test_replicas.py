"""Copies that differ are found, and all take the first; parts and signs of zero are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nvib_jax.config import MeshConfig
from nvib_jax.training.guards.replicas import make_agree
from nvib_jax.training.sharding import make_mesh


def uneven(mesh, spec, value, device, place):
    """An array whose copy on one device has another bit at a place of its part."""
    sharding = NamedSharding(mesh, spec)
    parts = []
    for i, (d, index) in enumerate(sharding.addressable_devices_indices_map(value.shape).items()):
        part = np.array(value[index])
        if i == device:
            part.view(np.uint32).reshape(-1)[place] ^= 1
        parts.append(jax.device_put(part, d))
    return jax.make_array_from_single_device_arrays(value.shape, sharding, parts)


@pytest.mark.parametrize("spec", [P(), P("fsdp"), P("fsdp", "tensor"), P("tensor")])
def test_a_copy_that_differs_is_found_and_mended(spec):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    value = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    value[0, 0] = -0.0
    shardings = {"x": NamedSharding(mesh, spec), "n": NamedSharding(mesh, P())}
    for device, wrong in ((None, 0), (7, 1)):
        tree = {"x": uneven(mesh, spec, value, device, 2), "n": jnp.int32(5)}
        tree["n"] = jax.device_put(tree["n"], shardings["n"])
        mended, unequal = make_agree(mesh, shardings)(tree)
        assert int(unequal) == wrong
        for shard in mended["x"].addressable_shards:
            want = value[shard.index]
            np.testing.assert_array_equal(np.asarray(shard.data).view(np.uint32),
                                          np.ascontiguousarray(want).view(np.uint32))  # fmt: skip
        assert mended["x"].sharding.spec == spec
        assert int(mended["n"]) == 5


def test_what_has_no_copies_is_left_alone():
    mesh = make_mesh(MeshConfig(fsdp=8))
    sharding = {"x": NamedSharding(mesh, P(("data", "fsdp", "tensor")))}
    x = jax.device_put(jnp.arange(8.0), sharding["x"])
    mended, unequal = make_agree(mesh, sharding)({"x": x})
    assert int(unequal) == 0
    np.testing.assert_array_equal(mended["x"], np.arange(8.0))
