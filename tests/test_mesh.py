"""Meshes: the same training on any of them, every array where the table says, clear refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from examples import kernels, mixture, query
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerance import assert_trees_close

import nvib_jax as nvib
from nvib_jax.config import MeshConfig
from nvib_jax.data import prepare
from nvib_jax.mesh import MESH_AXES, RULES, constrain, per_device, summed
from nvib_jax.models.build import build
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.params import axes_of, split
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.training import loop
from nvib_jax.training.hlo import collectives
from nvib_jax.training.sharding import (
    batch_placer,
    check_fits,
    make_mesh,
    own_rows,
    plan_state,
    whole,
)
from nvib_jax.training.step import make_train_step, means

STEPS = 50
ONE = MeshConfig(data=1)


def structure(config, vocab_size):
    return build(config.model, vocab_size=vocab_size, max_length=24, seed=config.train.seed)


@functools.cache
def plan(mesh_config, **changes):
    config = tiny.config("mesh")
    config = dataclasses.replace(config, mesh=mesh_config)
    mesh, data = make_mesh(mesh_config), prepare(config.data)
    return config, mesh, data, plan_state(config, mesh, structure(config, data.vocab_size))


@functools.cache
def trained(mesh_config):
    """(losses of 50 steps, the last step's metrics, state) of a run on a mesh."""
    config, mesh, data, planned = plan(mesh_config)
    losses = []
    with jax.set_mesh(mesh):
        state = planned.create()
        step = make_train_step(
            structure(config, data.vocab_size).graph,
            planned.optimizer,
            config.objective,
            shardings=(planned.shardings, whole(mesh)),
        )
        batches = loop.open_batches(config, data, mesh, "train")
        place = batch_placer(mesh, config.data.batch_size)
        for i in range(STEPS):
            batch = place(loop.arrays_of(batches[i]))
            state, metrics = step(state, batch, jax.random.key(0))
            losses.append(metrics["loss"][0])
    return np.array(losses), means(metrics), state


# ---- training


@pytest.mark.parametrize(
    "mesh_config",
    [
        MeshConfig(fsdp=2, tensor=2),
        MeshConfig(),
        MeshConfig(fsdp=8),
        MeshConfig(data=4, tensor=2),
    ],
    ids=str,
)
@pytest.mark.long
def test_fifty_steps_on_any_mesh_are_those_of_one_device(mesh_config):
    wanted, last, one = trained(ONE)
    losses, metrics, many = trained(mesh_config)
    assert wanted[-1] < wanted[0] - 1  # it learns, with dropout and draws
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    for name, value in last.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3), (
            name
        )  # a KL of 0.009 is a difference
    for name, value in one.params.items():
        error = np.abs(np.asarray(many.params[name]) - np.asarray(value))
        if name.endswith("qkv.bias"):
            # A key bias cancels: its gradient is rounding, which Adam makes as big as any other.
            error[1] = 0
        assert error.max() < 1e-3, name  # a tenth of one step's learning rate


def test_the_state_is_made_in_parts_and_stays_so():
    """Parameters, moments and what a step returns: a quarter each, a half where fsdp is alone."""
    _, _, _, planned = plan(MeshConfig(fsdp=2, tensor=2))
    fresh, after = planned.create(), trained(MeshConfig(fsdp=2, tensor=2))[2]
    for state in (fresh, after):
        moments = state.opt_state[1][0].mu
        for tree in (state.params, moments):
            kernel = tree["encoder.layers.0.attention.qkv.kernel"]
            assert kernel.sharding.shard_shape(kernel.shape) == (8, 3, 8)
            table = tree["decoder_embedding"]
            assert table.sharding.shard_shape(table.shape) == (215, 8)
            mean = tree["latent.mean.kernel"]
            assert mean.sharding.shard_shape(mean.shape) == (8, 16)
        assert state.step.sharding.is_fully_replicated
    for name, value in plan(ONE)[3].create().params.items():
        np.testing.assert_allclose(fresh.params[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.long
def test_evaluation_and_generation_on_a_mesh():
    """A model on eight devices, parameters split: what it writes is what it writes on one."""
    config, _ = tiny.trained()
    alone = loop.TextModel.load(config.train.run_dir)
    texts = prepare(config.data).sentences("validation", 5)
    written = alone.reconstruct(texts), alone.sample(3), alone.interpolate(*texts[:2], steps=3)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        model = tiny.open_model(config, prepare(config.data))
        params = {n: jax.device_put(alone.params[n], p.sharding) for n, p in model.params.items()}
        assert params["output.kernel"].sharding.spec == P("fsdp", "tensor")
        model = dataclasses.replace(model, params=params)
        again = model.reconstruct(texts), model.sample(3), model.interpolate(*texts[:2], steps=3)
        counted = model.counted(texts)
    assert again == written
    np.testing.assert_array_equal(
        counted.count_probabilities, alone.counted(texts).count_probabilities
    )


# ---- the table


@pytest.mark.parametrize("kind", LATENTS)
def test_every_parameter_has_axes(kind):
    options = {"latent_bias": True, "pseudo_count": "exp_quadratic", "gate": "pace"}
    for name, array in split(tiny.model(kind=kind, **options))[1].items():
        axes = axes_of(name, array.ndim)
        assert len(axes) == array.ndim, name
        assert {axis for axis in axes if axis} <= set(RULES), name
        used = [a for axis in axes if axis for a in RULES[axis]]
        assert len(used) == len(set(used)), name  # no mesh axis twice
        assert any(axes) or array.ndim < 2, name


def test_a_matrix_without_axes_is_refused():
    with pytest.raises(ValueError, match=r"parameter latent.new.kernel has 2 axes; wanted their"):
        axes_of("latent.new.kernel", 2)


# ---- inside a step


def test_attention_on_a_mesh():
    """Sentences over data and fsdp, heads over tensor, gradients and all."""
    q, mix, k = query(8, heads=2), mixture(8), kernels(heads=2)

    def loss(q, k):
        out = nvib.denoising_attention(q, mix, **k, causal=True)
        return jnp.sum(jnp.sin(out)), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    wanted = run(q, k)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, tensor=2))):
        got = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(q, k)
    assert not got[0][1].sharding.is_fully_replicated
    assert_trees_close(got, wanted, 1e-5)


@pytest.mark.parametrize("implementation", ["pallas_tpu"])
@pytest.mark.usefixtures("simulated_tpu")
def test_a_kernel_on_a_mesh(implementation):
    """What no compiler can divide runs on each device's part."""
    q, mix, k = query(4, heads=2), mixture(4), kernels(heads=2)

    def loss(k, implementation):
        out = nvib.denoising_attention(q, mix, **k, implementation=implementation)
        return jnp.sum(jnp.sin(out))

    wanted = jax.jit(jax.grad(loss), static_argnums=1)(k, "xla")
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2))):
        got = jax.jit(jax.grad(loss), static_argnums=1)(k, implementation)
    assert_trees_close(got, wanted, 1e-4)


def test_the_output_layer_sums_its_gradient_once():
    """Cross-entropy in twelve parts: one all-reduce for the kernel's gradient, in no loop."""
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.random.normal(keys[0], (8, 12, 16))
    kernel = jax.random.normal(keys[1], (16, 40))
    targets = jax.random.randint(keys[2], (8, 12), 0, 40)
    mask = jnp.arange(12)[None] < jnp.arange(8)[:, None] + 3

    def loss(kernel, states):
        return cross_entropy(states, kernel, None, targets, mask, logits_at_once=10)

    grad = jax.value_and_grad(loss, argnums=(0, 1))
    wanted = jax.jit(grad)(kernel, states)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        arguments = (
            jax.device_put(kernel, NamedSharding(mesh, P(None, "tensor"))),
            jax.device_put(states, NamedSharding(mesh, P(RULES["batch"]))),
        )
        compiled = jax.jit(grad).lower(*arguments).compile()
        got = compiled(*arguments)
    assert_trees_close(got, wanted, 1e-5)
    text = compiled.as_text()
    assert "while(" in text
    summed = [line for line in text.splitlines() if " all-reduce(" in line and "f32[16,20]" in line]
    assert len(summed) == 1, summed


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        *((4, sizes) for sizes in ((1, 1, 2), (1, 4, 1), (2, 1, 1))),
        *((3, sizes) for sizes in ((1, 8, 1), (2, 4, 1), (2, 2, 2))),
    ],
)
def test_the_output_layer_at_the_edges(rows, sizes):
    """Axes of one device; three sentences, which every device has, and adds up once."""
    keys = jax.random.split(jax.random.key(0), 3)
    states, kernel = jax.random.normal(keys[0], (rows, 6, 8)), jax.random.normal(keys[1], (8, 10))
    targets, mask = jax.random.randint(keys[2], (rows, 6), 0, 10), jnp.ones((rows, 6), bool)

    def loss(kernel, states):
        return cross_entropy(states, kernel, None, targets, mask)

    grad = jax.value_and_grad(loss, argnums=(0, 1))
    wanted = jax.jit(grad)(kernel, states)
    with jax.set_mesh(make_mesh(MeshConfig(**dict(zip(MESH_AXES, sizes, strict=True))))):
        assert_trees_close(jax.jit(grad)(kernel, states), wanted, 1e-5)


def test_each_device_attends_with_its_own_heads():
    """Half of the heads on two tensor devices is half of the work, and nothing is gathered."""
    q, mix, k = query(8, heads=2), mixture(8), kernels(heads=2)

    def loss(q, k):
        return jnp.sum(jnp.sin(nvib.denoising_attention(q, mix, **k, implementation="xla")))

    def compiled(mesh):
        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(q, k).compile()
        cost = step.cost_analysis()
        text = step.as_text()
        return (cost[0] if isinstance(cost, list) else cost)["flops"], collectives(text)

    whole, _ = compiled(make_mesh(MeshConfig(data=4)))
    half, sent = compiled(make_mesh(MeshConfig(data=4, tensor=2)))
    assert half < 0.7 * whole
    assert sum(c.sent for c in sent if c.kind == "all-gather") < 2000


def test_without_a_mesh_of_ours_nothing_happens():
    x = jnp.ones((8, 4))
    assert constrain(x, "batch", None) is x
    other = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(other):
        assert constrain(x, "batch", None) is x
    explicit = jax.make_mesh((8, 1, 1), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)
    with jax.set_mesh(explicit):
        assert constrain(x, "batch", None) is x
    mesh = make_mesh(MeshConfig())
    inside = jax.shard_map(
        lambda x: constrain(x, "batch", None) + 1,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P("data"),
    )
    np.testing.assert_array_equal(inside(x), x + 1)


def test_what_does_not_divide_stays_whole():
    """A batch of three on eight devices: every device does all of it, and sums are not doubled."""

    def total(x):
        return summed(jnp.sum(x))

    with jax.set_mesh(make_mesh(MeshConfig())):
        for rows, shards in ((3, 1), (16, 8)):
            x = jnp.arange(2.0 * rows).reshape(rows, 2)
            run = jax.jit(lambda x: per_device(total, {"x": x}, {"x": ("batch", None)}, like=None))
            assert run(x) == x.sum()
            placed = jax.jit(lambda x: constrain(x, "batch", None))(x)
            assert len({s.index[0].start for s in placed.addressable_shards}) == shards


# ---- batches


def test_a_process_reads_the_rows_of_its_devices():
    """Whatever the order of the devices on the mesh, each row is where the sharding says."""
    devices = np.random.default_rng(0).permutation(jax.devices())
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2), list(devices))
    np.testing.assert_array_equal(own_rows(mesh, 16), np.arange(16))
    tokens = np.arange(32, dtype=np.int32).reshape(16, 2)
    placed = batch_placer(mesh, 16)({"tokens": tokens})["tokens"]
    np.testing.assert_array_equal(placed, tokens)
    assert placed.sharding.shard_shape((16, 2)) == (4, 2)


# ---- refusals


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        (
            {"fsdp": 3},
            r"8 devices; mesh.data any x fsdp 3 x tensor 1 wants a multiple of 3",
        ),
        ({"data": 4, "fsdp": 4}, r"there are 8 devices; .* wants 16"),
        ({"fsdp": 16}, r"there are 8 devices; .* wants a multiple of 16"),
    ],
)
def test_sizes_that_the_devices_do_not_make_up(sizes, match):
    with pytest.raises(ValueError, match=match):
        make_mesh(MeshConfig(**sizes))


@pytest.mark.parametrize(
    ("mesh_config", "section", "change", "match"),
    [
        (MeshConfig(), "data", {"batch_size": 12},
         r"data.batch_size is 12; wanted a multiple of mesh.data times mesh.fsdp, 8"),
        (MeshConfig(), "train", {"accumulate": 4},
         r"data.batch_size is 16; .* mesh.fsdp, 8 times train.accumulate, 4"),
        (MeshConfig(tensor=4), "data", {},
         r"model.heads is 2; wanted a multiple of mesh.tensor, 4"),
        (MeshConfig(tensor=4), "model", {"heads": 4, "latent_heads": 1},
         r"decoder_embedding has vocab 430; wanted a multiple of mesh.tensor, 4 \(data.vocab_size"),
        (MeshConfig(fsdp=8), "model", {"dim": 12, "heads": 2},
         r"has embed 12; wanted a multiple of mesh.fsdp, 8"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_divide(mesh_config, section, change, match):
    config = tiny.config("mesh")
    changed = dataclasses.replace(getattr(config, section), **change)
    config = dataclasses.replace(config, **{section: changed})
    shapes = structure(config, 430).shapes
    with pytest.raises(ValueError, match=match):
        check_fits(config, make_mesh(mesh_config), shapes)


def test_one_latent_head_is_left_whole():
    config = tiny.config("mesh")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, latent_heads=1))
    mesh = make_mesh(MeshConfig(tensor=2))
    planned = plan_state(config, mesh, structure(config, 430))
    check_fits(config, mesh, planned.state.params)
    name = "decoder.layers.0.latent_attention.key_kernel"
    assert planned.state.params[name].sharding.spec == P("fsdp", None, None)
