"""The training step: its loss by hand, its metrics, its optimiser, and steps that go bad."""

import dataclasses

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tolerance import assert_close, assert_trees_close

import nvib_jax as nvib
from nvib_jax.config import ObjectiveConfig, TrainConfig
from nvib_jax.models.params import merge, split
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.objective import log_likelihood
from nvib_jax.training.loss import loss_and_metrics
from nvib_jax.training.optimizer import make_optimizer
from nvib_jax.training.step import TrainState, add_metrics, make_train_step, means

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def still():
    """(graph, parameters, log-likelihood, KL_G, KL_D of the batch), nothing drawn."""
    module, data = tiny.model(tiny.Still), tiny.batch()

    @jax.jit
    def terms():
        posterior, prior = module.encode(data["tokens"], data["mask"]), module.latent.prior
        memories = module.memories(module.draw(posterior, KEY), "exact")
        inputs, targets, counted = decoder_io(data["tokens"], data["mask"])
        log_p = log_likelihood(module.decode(memories, inputs), targets, counted)
        return log_p, nvib.kl_gaussian(posterior, prior), nvib.kl_dirichlet(posterior, prior)

    return *split(module), *(np.asarray(t, np.float64) for t in terms())


def loss_at(graph, params, step=0, train=True, **objective):
    how = ObjectiveConfig(**objective)
    return loss_and_metrics(
        merge(graph, params), tiny.batch(), KEY, jnp.int32(step), how, train=train
    )


# ---- the loss


def test_both_units_by_hand(still):
    graph, params, log_p, kl_g, kl_d = still
    lengths = np.array([6, 3, 1, 4])
    tokens = np.sum(lengths + 1)
    cross_entropy = -log_p.sum() / tokens
    published = jax.jit(lambda p: loss_at(graph, p, lambda_gaussian=0.7, lambda_dirichlet=0.2))
    want = cross_entropy + 0.7 * np.mean(kl_g / (lengths + 1) / 16)
    want += 0.2 * np.mean(kl_d / (lengths + 1))
    loss, metrics = published(params)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    elbo = jax.jit(
        lambda p: loss_at(graph, p, units="elbo", lambda_gaussian=0.7, lambda_dirichlet=0.2)
    )
    want = (-log_p.sum() + 0.7 * kl_g.sum() + 0.2 * kl_d.sum()) / tokens
    np.testing.assert_allclose(elbo(params)[0], want, rtol=1e-5)
    # Metrics are (sum, count), the KLs unscaled nats whatever the units.
    for name, total, count in (
        ("cross_entropy", -log_p.sum(), tokens), ("kl_gaussian", kl_g.sum(), 4),
        ("kl_dirichlet", kl_d.sum(), 4), ("loss", loss, 1),
    ):  # fmt: skip
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5)
        assert metrics[name][1] == count
    assert metrics["share_kept"][1] == lengths.sum()


def test_the_weights_weigh_what_they_are_called(still):
    """d loss / d lambda is the term it weighs, in both units."""
    graph, params, _, kl_g, kl_d = still
    parts = np.array([7, 4, 2, 5])

    @jax.jit
    def slopes():
        def loss(weights, units):
            how = ObjectiveConfig(units=units)
            object.__setattr__(how, "lambda_gaussian", weights[0])
            object.__setattr__(how, "lambda_dirichlet", weights[1])
            return loss_and_metrics(merge(graph, params), tiny.batch(), KEY, jnp.int32(0), how)[0]

        return [jax.grad(loss)(jnp.ones(2), units) for units in ("published", "elbo")]

    published, elbo = slopes()
    np.testing.assert_allclose(
        published, [np.mean(kl_g / parts / 16), np.mean(kl_d / parts)], rtol=1e-5
    )
    np.testing.assert_allclose(
        elbo, [kl_g.sum() / parts.sum(), kl_d.sum() / parts.sum()], rtol=1e-5
    )


@pytest.mark.parametrize(("from_start", "dirichlet"), [(False, 0.5), (True, 1.0)])
def test_annealing_is_in_steps(still, from_start, dirichlet):
    graph, params, log_p, kl_g, kl_d = still
    run = jax.jit(
        lambda step: loss_at(
            graph, params, step, units="elbo", lambda_gaussian=1.0, anneal="linear",
            anneal_start=10, anneal_steps=20, dirichlet_from_start=from_start,
        )[0]
    )  # fmt: skip
    at = {step: float(run(jnp.int32(step))) for step in (0, 10, 20, 30, 99)}
    weights = {0: 0, 10: 0, 20: 0.5, 30: 1, 99: 1}
    for step, weight in weights.items():
        factor = 1.0 if from_start else weight
        want = (-log_p.sum() + weight * kl_g.sum() + factor * kl_d.sum()) / 18
        np.testing.assert_allclose(at[step], want, rtol=1e-5, err_msg=str(step))


def test_the_forms_of_the_loss(still):
    graph, params, *_, kl_d = still
    exact = jax.jit(lambda p: loss_at(graph, p, dirichlet_form="exact"))(params)[1]
    assert abs(float(exact["kl_dirichlet"][0]) / kl_d.sum() - 1) > 0.01


def test_dropout_in_training_only():
    module = tiny.model(tiny.Still, dropout=0.5)
    graph, params = split(module)
    plain = jax.jit(lambda p: loss_at(graph, p, train=False)[0])(params)
    calm = split(tiny.model(tiny.Still, dropout=0.0))[0]
    np.testing.assert_allclose(plain, jax.jit(lambda p: loss_at(calm, p)[0])(params), rtol=1e-6)
    noisy = jax.jit(lambda p: loss_at(graph, p)[0])(params)
    assert abs(float(noisy / plain) - 1) > 1e-3


# ---- metrics


def test_windows_add_up():
    a = {"x": (jnp.float32(6), jnp.int32(2)), "y": (jnp.float32(1), jnp.int32(0))}
    b = {"x": (jnp.float32(3), jnp.int32(1)), "y": (jnp.float32(0), jnp.int32(0))}
    assert means(add_metrics(add_metrics(None, a), b)) == {"x": 3.0, "y": 1.0}


# ---- the optimiser


@pytest.mark.parametrize("name", ["adam", "adamw", "radam"])
def test_the_prior_and_vectors_are_left_alone_by_decay(name):
    """With no gradient nothing moves but what weight decay shrinks: matrices, under adamw."""
    _, params = split(tiny.model(latent_bias=True, pseudo_count="exp_quadratic"))
    params = {n: p + 1 for n, p in params.items()}
    optimizer = make_optimizer(TrainConfig(optimizer=name, weight_decay=0.1, warmup_steps=0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = {n for n, u in updates.items() if jnp.any(u != 0)}
    kernels = {n for n in params if n.endswith(("kernel", "_embedding", "_position"))}
    assert moved == (kernels if name == "adamw" else set())
    assert not any("prior" in n or n.endswith("bias") for n in moved)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("linear", {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.505, 110: 0.01, 500: 0.01}),
        ("cosine", {0: 0.0, 5: 0.5, 10: 1.0, 60: 0.505, 110: 0.01, 500: 0.01}),
    ],
)
def test_the_learning_rate(schedule, want):
    """Read off as the update of a constant gradient under Adam, which is minus the rate."""
    config = TrainConfig(
        optimizer="adam", learning_rate=1.0, schedule=schedule, steps=110, warmup_steps=10, clip=1e9
    )
    optimizer = make_optimizer(config)
    params = {"w": jnp.zeros((2, 2))}
    state = optimizer.init(params)
    for step, rate in want.items():
        state = jax.tree.map(
            lambda x, step=step: jnp.int32(step) if x.dtype == jnp.int32 else x, state
        )
        # Debiased moments of a gradient of 1 at any count.
        state = optax.tree.set(
            state,
            mu={"w": jnp.full((2, 2), 1 - 0.9**step)},
            nu={"w": jnp.full((2, 2), 1 - 0.999**step)},
        )
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update({"w": jnp.ones((2, 2))}, state, params)
        np.testing.assert_allclose(updates["w"], -rate, rtol=1e-3, atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    optimizer = make_optimizer(TrainConfig(optimizer="adam", clip=0.5))
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros((4,))}
    for size, norm in ((3.0, 0.5), (0.01, 0.01 * 8**0.5)):
        grads = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), params)
        with jax.numpy_dtype_promotion("standard"):
            state = optimizer.update(grads, optimizer.init(params), params)[1]
        first_moment = optax.tree.get(state, "mu")  # a tenth of the clipped gradient
        np.testing.assert_allclose(10 * optax.tree.norm(first_moment), norm, rtol=1e-5)


# ---- the step


def start(graph_and_params, optimizer):
    params = jax.tree.map(jnp.copy, graph_and_params[1])
    return TrainState.create(params, optimizer)


@pytest.fixture(scope="module")
def stepping():
    """(initial (graph, params), optimiser, the jitted step) of a model with dropout and draws."""
    pieces = split(tiny.model(dropout=0.1))
    optimizer = make_optimizer(TrainConfig(warmup_steps=0, learning_rate=1e-2))
    how = ObjectiveConfig(lambda_gaussian=0.1)
    return pieces, optimizer, make_train_step(pieces[0], optimizer, how)


def eight_rows(seed):
    return tiny.batch(seed, (6, 3, 1, 4, 5, 2, 6, 0))


def test_training_learns_and_leaves_the_prior_alone(stepping):
    pieces, optimizer, step = stepping
    state, seen = start(pieces, optimizer), []
    for _ in range(30):
        state, metrics = step(state, eight_rows(0), KEY)
        seen.append(means(metrics)["cross_entropy"])
    assert int(state.step) == 30
    assert np.mean(seen[-5:]) < 0.7 * np.mean(seen[:5])
    for name, before in pieces[1].items():
        same = bool(jnp.array_equal(before, state.params[name]))
        assert same == name.startswith("latent.prior_values"), name


def test_the_noise_is_named_by_the_step(stepping):
    """The same state gives the same step; another step number other noise."""
    pieces, optimizer, step = stepping
    one, again = (step(start(pieces, optimizer), eight_rows(0), KEY)[1] for _ in range(2))
    chex.assert_trees_all_equal(one, again)
    later = dataclasses.replace(start(pieces, optimizer), step=jnp.int32(1))
    other = step(later, eight_rows(0), KEY)[1]
    assert other["cross_entropy"][0] != one["cross_entropy"][0]


@pytest.fixture(scope="module")
def guarded():
    """A step that takes three times the running mean for a spike, of a loss that a batch scales."""
    pieces, optimizer = split(tiny.model(tiny.Still)), make_optimizer(TrainConfig(warmup_steps=0))

    def scaled(model, batch, key, step, objective, **kw):
        plain = {name: batch[name] for name in ("tokens", "mask")}
        loss, metrics = loss_and_metrics(model, plain, key, step, objective, **kw)
        loss = loss * batch["scale"]
        return loss, {**metrics, "loss": (loss, metrics["loss"][1])}

    step = make_train_step(pieces[0], optimizer, ObjectiveConfig(), spike=3.0)

    def run(state, scale):
        return step(state, {**tiny.batch(), "scale": jnp.float32(scale)}, KEY)

    with pytest.MonkeyPatch.context() as patch:  # while it is traced
        patch.setattr("nvib_jax.training.step.loss_and_metrics", scaled)
        run(start(pieces, optimizer), 1.0)
    return run


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), 4.0])
def test_a_bad_step_is_never_taken(guarded, scale):
    """No number, infinite, or a spike: counted, and nothing else changes; then it goes on."""
    state = start(split(tiny.model(tiny.Still)), make_optimizer(TrainConfig(warmup_steps=0)))
    for _ in range(2):
        state, metrics = guarded(state, 1.0)
        assert means(metrics)["bad_steps"] == 0
    before = jax.device_get(state)
    state, metrics = guarded(state, scale)
    assert means(metrics).pop("bad_steps") == 1
    assert {float(x) for n, pair in metrics.items() if n != "bad_steps" for x in pair} == {0.0}
    after = jax.device_get(state)
    chex.assert_trees_all_equal(dataclasses.replace(after, step=before.step), before)
    assert after.step == before.step + 1
    state, metrics = guarded(state, 1.0)
    assert means(metrics)["bad_steps"] == 0
    assert not np.array_equal(state.params["output.kernel"], before.params["output.kernel"])


def test_a_first_step_that_is_bad_does_not_set_the_mean(guarded):
    state = start(split(tiny.model(tiny.Still)), make_optimizer(TrainConfig(warmup_steps=0)))
    state, _ = guarded(state, float("nan"))
    assert float(state.average_loss) == 0
    state, metrics = guarded(state, 1.0)
    assert means(metrics)["bad_steps"] == 0
    assert float(state.average_loss) == pytest.approx(means(metrics)["loss"])


def test_parts_of_a_batch_give_its_gradient(still):
    """Lengths differ between the parts, one sentence is filler: still the whole batch's step."""
    graph, params = still[:2]
    data = tiny.batch(lengths=(6, 3, 1, 0))
    optimizer, how = optax.sgd(1.0), ObjectiveConfig()

    def run(accumulate):
        state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
        return make_train_step(graph, optimizer, how, accumulate=accumulate)(state, data, KEY)

    (whole, wanted), (parts, got) = run(1), run(2)
    assert_trees_close(parts.params, whole.params, 1e-5)
    assert set(got) == set(wanted)
    for name, value in means(wanted).items():
        assert means(got)[name] == pytest.approx(value, rel=1e-5), name
    assert means(wanted)["gradient_norm"] > 1e-2


@pytest.mark.long
def test_remat_changes_memory_and_nothing_else():
    """The same gradient, dropout included, from fewer stored arrays."""

    def run(remat):
        graph, params = split(tiny.model(tiny.Still, remat=remat, dropout=0.2, encoder_layers=2))

        def loss(params):
            model = merge(graph, params)
            return loss_and_metrics(model, tiny.batch(), KEY, jnp.int32(0), ObjectiveConfig())[0]

        backward = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        kept = sum(x.size for x in jax.tree.leaves(backward))
        return jax.jit(jax.value_and_grad(loss))(params), kept

    (value, kept), (again, less) = run(False), run(True)
    # As one vector: a gradient whose terms cancel has the rounding of the terms.
    assert_close(*(jax.flatten_util.ravel_pytree(x)[0] for x in (again, value)), 1e-6)
    parameters = sum(x.size for x in split(tiny.model())[1].values())
    assert less - parameters < 0.7 * (kept - parameters)


def test_one_trace_a_bucket_and_no_wait_for_the_device(monkeypatch):
    pieces = split(tiny.model(tiny.Still))  # the draw is half of what there is to compile
    optimizer = make_optimizer(TrainConfig())
    traced = chex.assert_max_traces(loss_and_metrics, n=2)
    monkeypatch.setattr("nvib_jax.training.step.loss_and_metrics", traced)
    step = make_train_step(pieces[0], optimizer, ObjectiveConfig())
    state, window = start(pieces, optimizer), None
    narrow = {n: v[:, :4] for n, v in tiny.batch(0, (4, 3, 1, 4)).items()}
    for batch in (tiny.batch(), narrow):  # compile, and let the first eager additions be made
        state, metrics = step(state, batch, KEY)
        window = add_metrics(window, metrics)
    with jax.transfer_guard_device_to_host("disallow"):
        for i in range(6):
            state, metrics = step(state, tiny.batch() if i % 2 else narrow, KEY)
            window = add_metrics(window, metrics)
    assert means(window)["cross_entropy"] > 0
    chex.clear_trace_counter()
