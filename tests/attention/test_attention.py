"""Denoising attention: against Monte Carlo, between forms and implementations, and its edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import as_float64, kernels, mixture, normal, posterior, query
from tolerance import (
    assert_as_good_as,
    assert_close,
    assert_trees_close,
    error,
    plain_attention,
)

import nvib_jax as nvib
from nvib_jax.attention import (
    FORMS,
    IMPLEMENTATIONS,
    attention_weights,
    choice,
    pallas_tpu,
    xla,
)

# What computes here; the TPU's kernel in Pallas's simulation of a TPU, seconds a compilation, so it
# is left out where a test is of what comes before the kernel (test_pallas_tpu.py has its
# sizes, masks and blocks). The GPU's are in test_pallas_gpu.py.
WRITTEN = ("reference", "xla", "pallas_tpu")
QUICK = IN_FLOAT64 = ("reference", "xla")
pytestmark = pytest.mark.usefixtures("simulated_tpu")
attention = jax.jit(nvib.denoising_attention, static_argnames=("form", "implementation", "causal"))


def reference64(q, mix, **options):
    """The equation in float64."""
    arrays = {k: v for k, v in options.items() if not isinstance(v, str)}
    strings = {k: v for k, v in options.items() if isinstance(v, str)}
    with jax.enable_x64(True):
        q, mix, arrays = as_float64((q, mix, arrays))
        return np.asarray(attention(q, mix, **arrays, **strings, implementation="reference"))


def test_exact_is_the_posterior_mean_by_monte_carlo():
    """D = 64, random variances: v ~ F weighted by N(u; v, r I).

    Self-normalised importance sampling, 300,000 draws; the exact form is within 5 standard errors
    of each of 64 numbers (false alarm 4e-5), the published form is further off than 10 times that.
    """
    dim, size = 64, 300_000
    rng = np.random.default_rng(0)
    mean, s2 = rng.normal(size=(6, dim)), np.exp(rng.normal(size=(6, dim)) * 0.5)
    s2 *= np.exp(0.7 * rng.normal(size=(6, 1)))
    pi = rng.dirichlet(np.ones(6))
    q = rng.normal(size=dim) * 1.2
    root = np.sqrt(dim)
    eye = jnp.eye(dim)[:, None, :]
    mix = nvib.Mixture(
        jnp.float32(mean)[None], jnp.log(jnp.float32(s2))[None], jnp.log(jnp.float32(pi))[None],
        jnp.ones((1, 6), bool),
    )  # fmt: skip
    q4 = jnp.float32(q)[None, None, None]
    component = rng.choice(6, p=pi, size=size)
    v = mean[component] + np.sqrt(s2[component]) * rng.standard_normal((size, dim), np.float32)
    log_w = -((q - v) ** 2).sum(-1) / (2 * root)
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    want = w @ v
    stderr = np.sqrt(((w[:, None] * (v - want)) ** 2).sum(0))
    for implementation in QUICK:
        options = {"key_kernel": eye, "value_kernel": eye, "implementation": implementation}
        exact, published = (
            np.asarray(attention(q4, mix, form=f, **options), np.float64)[0, 0, 0]
            for f in ("exact", "published")
        )
        assert np.max(np.abs(exact - want) / stderr) < 5
        assert np.max(np.abs(published - want) / stderr) > 10
        assert np.abs(published - want).max() > 5 * np.abs(exact - want).max()


@pytest.mark.parametrize(
    ("form", "heads", "impulses"),
    [*((f, 2, False) for f in FORMS), ("exact", 2, True), ("exact", 1, False),
     ("exact", 8, False), ("published", 8, False)],
)  # fmt: skip
def test_implementations_agree(form, heads, impulses):
    """float32 xla errs at most twice what the plain formulation does; so does the reference."""
    q, mix, k = query(heads=heads), mixture(impulses=impulses), kernels(heads=heads)
    mask = jnp.ones((3, 4, 6), bool).at[:, 1, 2].set(False)
    truth = reference64(q, mix, **k, form=form)
    plain = plain_attention(q, mix, **k, form=form)
    for implementation in WRITTEN:
        assert_as_good_as(
            attention(q, mix, **k, form=form, implementation=implementation), plain, truth
        )
    assert_close(attention(q, mix, **k, form=form), truth)  # whatever None takes
    hidden = reference64(q, mix, **k, form=form, mask=mask)
    got = attention(q, mix, **k, form=form, mask=mask)
    assert error(got, hidden) < 1e-5
    assert error(got, truth) > 1e-4  # power: the mask matters


@pytest.mark.parametrize("implementation", QUICK)
def test_forms_agree_for_impulses(implementation):
    q, mix, k = query(), mixture(impulses=True), kernels()
    outs = [attention(q, mix, **k, form=f, implementation=implementation) for f in FORMS]
    for out in outs[1:]:
        assert_close(out, outs[0])


@pytest.mark.parametrize("implementation", WRITTEN)
def test_exact_is_published_when_all_variances_are_equal(implementation):
    q, mix, k = query(), mixture(), kernels()
    same = nvib.Mixture(mix.mean, jnp.full_like(mix.log_variance, 0.7), mix.log_weights, mix.mask)
    exact, published = (
        attention(q, same, **k, form=f, implementation=implementation)
        for f in ("exact", "published")
    )
    assert_close(exact, published)
    differ = [
        attention(q, mix, **k, form=f, implementation=implementation)
        for f in ("exact", "published")
    ]
    assert error(*differ) > 1e-3


def test_expected_logit_is_the_impulse_form_with_the_mean_logit():
    """Averaged over 4,000 draws of z and pi, the impulse logits are those of expected_logit."""
    post, k, q = posterior(batch=1, tokens=3), kernels(), query(batch=1)
    keys = jax.random.split(jax.random.key(0), 4_000)

    def logits(mix):
        memory = nvib.make_memory(mix, **k, form="expected_logit")
        return jnp.einsum("bthe,bhse->bhts", q, memory.key) + memory.bias[:, None, None]

    draws = jax.jit(jax.vmap(lambda key: logits(nvib.sample(key, post))))(keys)
    want = np.mean(np.asarray(draws, np.float64), 0)
    stderr = np.std(np.asarray(draws, np.float64), 0) / np.sqrt(len(keys))
    geometric = nvib.expected(post, log_weights="geometric")
    assert np.all(np.abs(logits(geometric) - want) < 5 * stderr)  # 24 numbers, false alarm 2e-5
    weights = jax.nn.softmax(logits(geometric), -1)
    values = jnp.einsum("bsd,dhe->bshe", geometric.mean, k["value_kernel"])
    for implementation in QUICK:
        out = attention(q, geometric, **k, form="expected_logit", implementation=implementation)
        assert_close(out, jnp.einsum("bhts,bshe->bthe", weights, values))


@pytest.mark.parametrize("form", ["exact", "published"])
def test_small_variances_approach_impulses(form):
    """Large queries, tiny variances: no hundreds are subtracted from hundreds."""
    mix, k, q = mixture(), kernels(), 30 * query()
    narrow = nvib.Mixture(mix.mean, jnp.full_like(mix.mean, -40.0), mix.log_weights, mix.mask)
    impulses = nvib.Mixture(mix.mean, None, mix.log_weights, mix.mask)
    assert_close(attention(q, narrow, **k, form=form), attention(q, impulses, **k), 1e-6)


@pytest.mark.parametrize(
    ("form", "impulses"),
    [
        *((f, False) for f in FORMS if f != "exact"),
        ("exact", True),
        pytest.param("exact", False, marks=pytest.mark.long),
    ],
)
def test_bfloat16_errs_at_most_twice_the_plain_formulation(form, impulses):
    half = jnp.bfloat16
    mix = mixture(tokens=20, dim=32, impulses=impulses)
    k = jax.tree.map(lambda x: x.astype(half), kernels(32, 4))
    q = query(length=16, dim=32, heads=4).astype(half)
    truth = reference64(q, mix, **k, form=form)
    plain = plain_attention(q, mix, **k, form=form)
    written = WRITTEN if form == "exact" else QUICK
    for implementation in written:
        out = attention(q, mix, **k, form=form, implementation=implementation)
        assert out.dtype == half
        assert_as_good_as(out, plain, truth)

    def loss(q, k, implementation):
        out = nvib.denoising_attention(q, mix, **k, form=form, implementation=implementation)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    want = grad(q, k, "reference")
    for implementation in written[1:]:
        got = grad(q, k, implementation)  # 2^-8 through a few products
        jax.tree.map(lambda a, b: assert_close(a, b, 0.05), got, want)
    low = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(half), mix)
    assert error(attention(q, low, **k, form=form), truth) < 0.1


def test_float64_stays_float64():
    with jax.enable_x64(True):
        q, mix, k = as_float64((query(), mixture(), kernels()))
        for form in FORMS:
            out = [attention(q, mix, **k, form=form, implementation=i) for i in IN_FLOAT64]
            assert out[1].dtype == jnp.float64
            assert_close(out[1], out[0], 1e-12)
        with pytest.raises(NotImplementedError, match="float64; the TPU kernel takes float32 and"):
            attention(q, mix, **k, implementation="pallas_tpu")


@pytest.mark.parametrize("form", ["exact", "expected_logit"])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_equal_the_reference_in_value_and_gradient(form, masked):
    """T beyond one chunk and no multiple of it; query, mixture (bias path too) and kernels."""
    length = xla.ROWS + 3  # two heads: three chunks
    q, mix, k = query(2, length), mixture(2), kernels()
    mask = None
    if masked:
        mask = (
            jnp.asarray(np.random.default_rng(3).random((2, length, 6)) < 0.6).at[..., 0].set(True)
        )
    target = normal(8, *q.shape)

    def loss(q, mean, log_variance, log_weights, k, implementation):
        mix_ = nvib.Mixture(mean, log_variance, log_weights, mix.mask)
        out = nvib.denoising_attention(
            q, mix_, **k, mask=mask, form=form, implementation=implementation
        )
        return jnp.sum(target * jnp.sin(out))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)), static_argnums=5)
    weights = jnp.where(mix.mask, mix.log_weights, 0.0)
    args = (q, mix.mean, mix.log_variance, weights, k)
    want = run(*args, "reference")
    assert_trees_close(run(*args, "xla"), want, 2e-5)
    assert all(float(jnp.max(jnp.abs(g))) > 1e-3 for g in jax.tree.leaves(want[1]))


def test_gradient_memory_is_linear_and_holds_no_whole_tensor():
    """Temporaries of the compiled gradient: linear in S, less than [B,H,T,S] and [B,H,T,D]."""
    batch, length, dim, heads = 1, 4 * xla.ROWS, 64, 8

    def temporaries(components):
        def loss(q, mean, log_variance, log_weights, k):
            mix = nvib.Mixture(mean, log_variance, log_weights, jnp.ones((batch, components), bool))
            return jnp.sum(nvib.denoising_attention(q, mix, **k, implementation="xla") ** 2)

        args = jax.eval_shape(
            lambda: (
                jnp.zeros((batch, length, heads, dim // heads)),
                jnp.zeros((batch, components, dim)),
                jnp.zeros((batch, components, dim)),
                jnp.zeros((batch, components)),
                kernels(dim, heads),
            )
        )
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4))).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(512), temporaries(1024)
    assert large < 2.1 * small
    assert large < 0.5 * 4 * batch * heads * length * 1024
    # Queries in R^D for all heads would alone be 4 B H T D bytes.
    assert temporaries(8) < 4 * batch * heads * length * dim


@pytest.mark.parametrize("implementation", WRITTEN)
@pytest.mark.parametrize(("length", "components"), [(5, 6), (4, 6), (6, 4), (1, 6)])
def test_causal_is_the_mask_that_it_says(implementation, length, components):
    """Component 0, and those up to t + S - T; on top of a mask; T beyond one chunk below."""
    q, mix, k = query(length=length), mixture(tokens=components - 1), kernels()
    seen = np.zeros((length, components), bool)
    for t in range(length):
        seen[t, : max(t + components - length + 1, 1)] = True
    options = {"implementation": implementation, "causal": True}
    reference = functools.partial(attention, q, mix, **k, implementation="reference")
    want = reference(mask=jnp.broadcast_to(seen, (3, *seen.shape)))
    assert_close(attention(q, mix, **k, **options), want)
    if length > 1:
        assert error(reference(), want) > 1e-3
    if components > 4:
        hole = jnp.ones((3, length, components), bool).at[..., 2].set(False)
        want = reference(mask=hole & seen[None])
        assert_close(attention(q, mix, **k, **options, mask=hole), want)


def test_causal_over_several_chunks():
    length = xla.ROWS // 2 + 9
    q, mix, k = query(1, length), mixture(1, length), kernels()
    seen = np.tri(length, length + 1, 1, dtype=bool)[None]
    want = attention(q, mix, **k, mask=seen, implementation="reference")
    for implementation in QUICK:
        assert_close(attention(q, mix, **k, causal=True, implementation=implementation), want)


def test_none_takes_the_fastest_that_can(monkeypatch):
    """A rule that cannot do what is asked is passed over; the same name, asked for, raises."""
    q, mix, k = query(), mixture(impulses=True), kernels()
    memory = nvib.make_memory(mix, **k)
    kind = jax.devices()[0].device_kind
    want = nvib.attend(q, memory)
    for name in ("cudnn", "pallas_gpu"):  # both refuse float32
        monkeypatch.setattr(choice, "FASTEST", {kind: ((1, False, name),)})
        assert_close(nvib.attend(q, memory), want)
        with pytest.raises(NotImplementedError):
            nvib.attend(q, memory, implementation=name)
    monkeypatch.setattr(choice, "FASTEST", {kind: ((1, False, "pallas_tpu"),)})
    taken = []
    monkeypatch.setattr(pallas_tpu, "attend", lambda q, *a, **k: taken.append(1) or q)
    nvib.attend(q, memory)
    assert taken


def test_no_query_at_all():
    q, mix, k = query(), mixture(), kernels()
    assert nvib.denoising_attention(q[:, :0], mix, **k).shape == (3, 0, 2, 4)


def test_memory_is_made_once_and_attended_many_times():
    q, mix, k, bias = query(length=5), mixture(), kernels(), normal(4, 2, 4)
    want = nvib.denoising_attention(q, mix, **k, value_bias=bias)
    memory = nvib.make_memory(mix, **k)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(q, memory):
        return nvib.attend(q, memory, value_bias=bias)

    steps = [step(q[:, i : i + 1], memory) for i in range(5)]
    assert_close(jnp.concatenate(steps, 1), want)


@pytest.mark.parametrize(
    ("implementation", "form"),
    [*((i, f) for i in QUICK for f in FORMS), ("pallas_tpu", "exact")],
)
def test_garbage_behind_the_mask_changes_nothing(form, implementation):
    """Padding may hold NaN: neither outputs nor gradients see it."""
    mix, q, k = mixture(), query(), kernels()

    def loss(mean, log_variance, log_weights):
        m = nvib.Mixture(mean, log_variance, log_weights, mix.mask)
        return jnp.sum(
            nvib.denoising_attention(q, m, **k, form=form, implementation=implementation) ** 2
        )

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    shown = mix.mask[..., None]
    want, wanted = run(mix.mean, mix.log_variance, mix.log_weights)
    got, grads = run(
        jnp.where(shown, mix.mean, jnp.nan),
        jnp.where(shown, mix.log_variance, jnp.inf),
        jnp.where(mix.mask, mix.log_weights, 1e30),
    )
    assert float(got) == float(want)
    for a, b in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", WRITTEN)
def test_nearly_everything_masked(implementation):
    """Only component 3 visible, at a log weight of -1e36: it alone is attended to."""
    mix, q, k = mixture(impulses=True), query(), kernels()
    lone = nvib.Mixture(mix.mean, None, mix.log_weights.at[:, 3].set(-1e36), mix.mask | True)
    mask = jnp.zeros((3, 4, 6), bool).at[..., 3].set(True)
    out = attention(q, lone, **k, mask=mask, implementation=implementation)
    value = jnp.einsum("bd,dhe->bhe", mix.mean[:, 3], k["value_kernel"])
    assert_close(out, jnp.broadcast_to(value[:, None], out.shape))
    everything = attention(q, mix, **k, mask=mask & False, implementation=implementation)
    assert np.isfinite(everything).all()  # out of contract, but no NaN


@pytest.mark.parametrize("form", FORMS)
def test_huge_log_weights(form):
    """Pseudo-counts of exp(300): as if 300 had been taken off all of them."""
    mix, q, k = mixture(), query(), kernels()
    huge = nvib.Mixture(mix.mean, mix.log_variance, mix.log_weights + 300, mix.mask)
    assert_close(attention(q, huge, **k, form=form), attention(q, mix, **k, form=form), 1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_component_order_does_not_matter(form):
    mix, q, k = mixture(), query(), kernels()
    order = np.random.default_rng(0).permutation(6)
    shuffled = jax.tree.map(lambda x: x[:, order], mix)
    assert_close(attention(q, shuffled, **k, form=form), attention(q, mix, **k, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_one_at_a_time_equals_batched(form):
    mix, q, k = mixture(), query(), kernels()
    whole = attention(q, mix, **k, form=form)
    for b in range(3):
        one = jax.tree.map(lambda x, b=b: x[b : b + 1], (q, mix))
        assert_close(attention(*one, **k, form=form), whole[b : b + 1])


def test_weights_sum_to_one_and_skip_what_is_hidden():
    mix, q, k = mixture(), query(), kernels()
    weights = attention_weights(q, nvib.make_memory(mix, **k))
    assert_close(jnp.sum(weights, -1), jnp.ones((3, 2, 4)))
    assert float(jnp.max(jnp.where(mix.mask[:, None, None], 0.0, weights))) == 0.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"form": "nope"}, "form is 'nope'; wanted one of 'exact', 'published', 'simplified', 'ex"),
        (
            {"key_kernel": jnp.zeros((7, 2, 4))},
            r"key_kernel has shape \(7, 2, 4\); wanted \[D, H, E\] = \(8, H, E\)",
        ),
        (
            {"value_kernel": jnp.zeros((8, 4))},
            r"value_kernel has shape \(8, 4\); wanted \[D, H, E\] = \(8, 2, 4\)",
        ),
    ],
)
def test_a_memory_that_cannot_be_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        nvib.make_memory(mixture(), **{**kernels(), **changed})


def test_errors():
    mix, q, k = mixture(), query(), kernels()

    def call(q=q, mix=mix, **changed):
        return nvib.denoising_attention(q, mix, **{**k, **changed})

    wrong = [
        ({"form": "nope"}, "form is 'nope'; wanted one of 'exact', 'published', 'simplified', 'ex"),
        (
            {"implementation": "gpu"},
            "implementation is 'gpu'; wanted one of 'reference', 'xla', 'p",
        ),
        ({"q": q[0]}, r"query has shape \(4, 2, 4\); wanted \[B, T, H, E\]"),
        ({"q": q[:2]}, r"mixture.mean has shape \(3, 6, 8\); wanted \[B, S, D\] = \(2, S, D\)"),
        (
            {"key_kernel": jnp.zeros((7, 2, 4))},
            r"key_kernel has shape \(7, 2, 4\); wanted \[D, H, E\] = \(8, 2, 4\)",
        ),
        (
            {"value_kernel": jnp.zeros((8, 2, 5))},
            r"value_kernel has shape \(8, 2, 5\); wanted \[D, H, E\] = \(8, 2, 4\)",
        ),
        (
            {"value_bias": jnp.zeros(8)},
            r"value_bias has shape \(8,\); wanted \[H, E\] = \(2, 4\)",
        ),
        (
            {"mask": jnp.ones((3, 4, 5), bool)},
            r"mask has shape \(3, 4, 5\); wanted \[B, T, S\] = \(3, 4, 6\)",
        ),
        ({"mask": jnp.ones((3, 4, 6))}, "mask has dtype float32; wanted bool, True = valid"),
    ]
    for changed, message in wrong:
        with pytest.raises(ValueError, match=message):
            call(**changed)
    with pytest.raises(
        ValueError, match=r"mixture.log_weights has shape \(3, 5\); wanted \[B, S\] = \(3, 6\)"
    ):
        call(mix=nvib.Mixture(mix.mean, None, mix.log_weights[:, 1:], mix.mask))
    memory = nvib.make_memory(mix, **k)
    with pytest.raises(ValueError, match=r"memory.key has shape .* = \(2, 2, S, 4\)"):
        nvib.attend(q[:2], memory)
    with pytest.raises(ValueError, match="mask has dtype int32; wanted bool"):
        nvib.attend(q, memory, mask=jnp.ones((3, 4, 6), jnp.int32))
    with pytest.raises(NotImplementedError, match="'reference' takes no memory"):
        nvib.attend(q, memory, implementation="reference")
    with pytest.raises(NotImplementedError, match="has kernels for TPU and GPU; this is cpu"):
        call(implementation="pallas")
    assert set(WRITTEN) < set(IMPLEMENTATIONS)
