"""The suites of `nvib bench`: what each times, against what, and that its rows do the same."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tolerance import assert_close

import nvib_jax as nvib
from nvib_jax.bench import attention, data, generate, plain, sampler, self_attention, train
from nvib_jax.bench.timing import Row, measure
from nvib_jax.cli import bench
from nvib_jax.config import ObjectiveConfig
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import merge, split
from nvib_jax.models.special_ids import EOS, PAD
from nvib_jax.training.loss import loss_and_metrics

TINY = attention.Shape(2, 2, 6, 5, 16)
QUICK = {"seconds": 0.0, "rounds": 2}


def check_rows(rows: list[Row], *, count: int) -> None:
    assert len(rows) == count
    for row in rows:
        assert row.reason == ""
        assert row.seconds is not None
        assert row.spread is not None
        assert 0 < row.spread[0] <= row.seconds <= row.spread[1] < math.inf
        assert row.ratio is not None
        assert 0 < row.ratio < math.inf
        assert row.compile_seconds is not None
        assert row.compile_seconds > 0
        assert row.rounds == QUICK["rounds"]


# ---- attention


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.setitem(attention.SHAPES, "small", TINY)
    monkeypatch.setitem(attention.SHAPES, "step", attention.Shape(2, 2, 1, 5, 16))


@pytest.mark.usefixtures("shapes")
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_attention_rows(which):
    """Three implementations that agree with float64."""
    names = ("plain", "reference", "xla")
    for form in ("impulse", "exact"):
        options = attention.Attention(form=(form,), passes=(which,), implementation=names)
        (group,) = options.groups()
        rows = measure(group, **QUICK)
        check_rows(rows, count=3)
        assert tuple(row.implementation for row in rows) == names
        labels = {"shape": f"small: {TINY}", "form": form, "dtype": "float32", "pass": which}
        assert all(row.labels == labels for row in rows)
        assert all(row.error is not None and 0 < row.error < 1e-5 for row in rows)
        assert len({row.flops for row in rows}) == 1


@pytest.mark.usefixtures("shapes")
def test_a_decoding_step_reads_a_memory_that_is_kept():
    options = attention.Attention(
        shape=("step",), form=("exact",), passes=("forward",), implementation=("xla", "kept"),
        dtype=("bfloat16",),
    )  # fmt: skip
    (group,) = options.groups()
    whole, kept = measure(group, **QUICK)
    check_rows([whole, kept], count=2)
    assert kept.flops < whole.flops
    assert 1e-4 < kept.error < 0.1  # bfloat16


@pytest.mark.usefixtures("shapes")
def test_the_error_column_sees_a_wrong_output_and_a_wrong_gradient(monkeypatch):
    right = plain.attention

    def wrong_output(query, mixture, **options):
        return right(query, mixture, **options) * 1.01

    def wrong_gradient(query, mixture, **options):
        mixture = dataclasses.replace(mixture, mean=jax.lax.stop_gradient(mixture.mean))
        return right(query, mixture, **options)

    for wrong, which in ((wrong_output, "forward"), (wrong_gradient, "backward")):
        monkeypatch.setattr(plain, "attention", wrong)
        options = attention.Attention(form=("exact",), implementation=("plain",), passes=(which,))
        (group,) = options.groups()
        assert measure(group, **QUICK)[0].error > 5e-3


@pytest.mark.usefixtures("shapes")
def test_what_an_implementation_cannot_do_is_a_row(monkeypatch):
    right = attention.denoising_attention

    def refuse(*arguments, implementation, **options):
        if implementation == "xla":
            raise NotImplementedError("no T of 6")
        return right(*arguments, implementation=implementation, **options)

    monkeypatch.setattr(attention, "denoising_attention", refuse)
    options = attention.Attention(
        form=("exact",), passes=("forward",), implementation=("plain", "xla")
    )
    (group,) = options.groups()
    rows = measure(group, **QUICK)
    assert [row.reason for row in rows] == ["", "no T of 6"]


def test_pallas_is_not_timed_on_a_cpu_unless_it_is_asked_for():
    assert attention.default_implementations()[0] == "plain"
    assert "pallas" not in attention.default_implementations()
    with pytest.raises(ValueError, match="'pallos'; wanted one of 'plain', "):
        next(attention.Attention(implementation=("pallos",)).groups())


@pytest.mark.parametrize("form", ["impulse", "exact", "published", "simplified"])
def test_operations_against_what_the_compiler_counts(form):
    """The plain formulation's products, and at most 3% of elementwise work on top."""
    shape = attention.Shape(2, 4, 64, 96, 128)
    arrays = attention.inputs(shape, form, "float32")
    run_plain = attention.only_forward(attention.implement("plain", form))
    counted = jax.jit(run_plain).lower(arrays).compile().cost_analysis()["flops"]
    assert 1.0 <= counted / attention.flops(shape, form) < 1.03


def test_inputs_are_random_and_seeded():
    arrays = attention.inputs(TINY, "exact", "float32")
    assert all(float(jnp.mean(jnp.abs(a))) > 0.05 for a in arrays.values())
    again = attention.inputs(TINY, "exact", "float32")
    assert all(bool(jnp.array_equal(arrays[name], again[name])) for name in arrays)


# ---- train

SMALL_TRAIN = train.Train(vocab_size=30, batch_size=2, batches=4, buckets=2, dim=8)


@pytest.mark.long
def test_train_rows(monkeypatch):
    """Without the gamma sampler, which takes most of the time to compile."""
    monkeypatch.setattr(NVAE, "draw", tiny.Still.draw)
    monkeypatch.setattr(plain, "draw", lambda posterior, key: tiny.Still.draw(None, posterior, key))
    (group,) = SMALL_TRAIN.groups()
    rows = measure(group, **QUICK)
    check_rows(rows, count=2)
    assert [row.implementation for row in rows] == ["plain", "nvib_jax"]
    assert rows[0].flops == rows[1].flops
    assert rows[0].unit == "tokens"
    assert rows[0].extra["steps"] == rows[1].extra["steps"] == 4
    assert rows[0].extra["padded share"] > rows[1].extra["padded share"] + 0.1


def test_both_rows_see_the_same_sentences():
    buckets, sentences = train.shard(8, 16, vocab_size=50, count=4, seed=3)
    assert len(sentences) == 8 * 16
    assert len(buckets) == 4
    lengths = [len(s) for s in sentences]
    assert min(lengths) >= 8
    assert max(lengths) <= 50
    seen = []
    for padded in ([50], buckets):
        batches = train.regroup(sentences, padded, 16, seed=3)
        assert len(batches) == 8
        assert all(b["mask"].any(-1).all() for b in batches)
        rows = [tuple(t[m]) for b in batches for t, m in zip(b["tokens"], b["mask"], strict=True)]
        seen.append(sorted(rows))
    assert seen[0] == seen[1]
    places, tokens = 128 * 51, sum(lengths) + 128
    plain_batches = train.regroup(sentences, [50], 16, seed=3)
    assert train.padded_share(plain_batches) == pytest.approx(1 - tokens / places)


def test_sentences_that_do_not_fill_a_batch_get_filler_rows():
    sentences = [np.full(n, 5, np.int32) for n in (3, 3, 3, 8)]
    batches = train.regroup(sentences, [4, 8], 2, seed=0)
    assert sorted(int(b["mask"].any(-1).sum()) for b in batches) == [1, 1, 2]


def test_the_plain_loss_is_the_library_s(monkeypatch):
    """Without dropout and with the mean for the draw: the same number, the same gradient."""
    monkeypatch.setattr(NVAE, "draw", tiny.Still.draw)
    monkeypatch.setattr(plain, "draw", lambda posterior, key: tiny.Still.draw(None, posterior, key))
    config = dataclasses.replace(train.model_config(8), dropout=0.0)
    graph, params = split(NVAE(config, vocab_size=30, max_length=6, rngs=tiny.nnx.Rngs(0)))
    plain_graph = split(plain.model(config, vocab_size=30, max_length=6))[0]
    batch, key = tiny.batch(), jax.random.key(0)

    def library(params):
        model = merge(graph, params)
        return loss_and_metrics(model, batch, key, jnp.int32(0), ObjectiveConfig())[0]

    def transcribed(params):
        return plain.loss(merge(plain_graph, params), batch, key)

    (a, grad_a), (b, grad_b) = (
        jax.jit(jax.value_and_grad(f))(params) for f in (library, transcribed)
    )
    assert_close(b, a, 1e-6)
    for name in grad_a:
        assert_close(grad_b[name], grad_a[name], 1e-4)


def test_the_plain_draw_is_a_draw_of_the_posterior():
    """Means of 4,000 weights within 5 standard errors, the empty component stays empty."""
    log_alpha = jnp.log(jnp.array([[1.0, 0.5, 0.0, 2.5, 9.0]], jnp.float32))
    mask = jnp.array([[True, True, True, True, False]])
    posterior = nvib.Posterior(
        jnp.ones((1, 5, 2), jnp.float32), jnp.zeros((1, 5, 2), jnp.float32), log_alpha, mask
    )
    keys = jax.random.split(jax.random.key(0), 4000)
    mixture = jax.jit(jax.vmap(lambda key: plain.draw(posterior, key)))(keys)
    shares = np.exp(np.asarray(mixture.log_weights, np.float64))[:, 0]
    errors = shares.std(0) / np.sqrt(4000) + 1e-12
    assert (np.abs(shares.mean(0) - np.array([0.25, 0.125, 0, 0.625, 0])) < 5 * errors).all()
    assert abs(float(mixture.mean.mean()) - 1) < 0.03

    def total(log_alpha):
        logs = plain.draw(dataclasses.replace(posterior, log_alpha=log_alpha), keys[0]).log_weights
        return jnp.sum(jnp.where(jnp.isneginf(logs), 0.0, logs))

    assert np.isfinite(jax.jit(jax.grad(total))(log_alpha)).all()


# ---- generate


def test_generate_rows_write_the_same_tokens():
    options = generate.Generate(vocab_size=30, sentences=3, length=5, dim=8)
    (group,) = options.groups()
    rows = measure(group, **QUICK)
    beam = rows.pop()
    assert beam.implementation == "beam 4"
    assert beam.seconds is not None
    check_rows(rows, count=3)
    assert rows[0].per_second == pytest.approx(15 / rows[0].seconds)
    written = [generate.tokens_of(options, row.implementation) for row in rows]
    assert written[0].shape == (3, 5)
    assert all(np.array_equal(written[0], other) for other in written[1:])
    assert not np.isin(written[0], [PAD, EOS]).any()


# ---- self-attention


def test_self_attention_rows():
    """The plain layer, and NVIB's that draws, with gradients."""
    options = self_attention.SelfAttentionSuite(
        implementation=("plain", "drawn"), batch=1, length=(4,), dim=8, heads=2, causal=True,
        passes=("gradient",),
    )  # fmt: skip
    (group,) = options.groups()
    check_rows(measure(group, **QUICK), count=2)
    by_params, by_x = group[1].prepare()()
    assert by_x.shape == (1, 4, 8)
    assert float(jnp.abs(by_params["nvib.alpha_linear"]).max()) > 0


# ---- sampler


def test_sampler_rows_and_the_saturated_gradient():
    """jax's gradient is wrong below 0.02; the library's is not."""
    options = sampler.Sampler(shape=("3x4",))
    for which, group in zip(options.passes, options.groups(), strict=True):
        rows = measure(group, **QUICK)
        check_rows(rows, count=2)
        assert {row.labels["pass"] for row in rows} == {which}
        theirs, ours = (row.error for row in rows)
        assert ours < 0.03 < theirs
    with pytest.raises(ValueError, match="shape is '3by4'; wanted whole numbers as in 64x51"):
        next(sampler.Sampler(shape=("3by4",)).groups())


# ---- data


def test_data_rows_are_the_batches_of_their_corpus():
    options = data.Data(tokens=(20_000,), batch_size=(16,))
    rows = measure(next(options.groups()), rounds=1)
    assert [row.implementation for row in rows] == ["indexed", "iterated"]
    assert all(row.per_second for row in rows)
    (case, _) = next(options.groups())
    call = case.prepare().function
    found = np.mean([call()["mask"].sum() for _ in range(300)])
    assert found == pytest.approx(case.amount, rel=0.1)


@pytest.mark.parametrize("suite", ["attention", "train", "generate", "sampler"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--rounds", "0", "rounds is 0; wanted at least 1"),
        ("--rounds", "-3", "rounds is -3; wanted at least 1"),
        ("--seconds", "-1", "seconds is -1.0; wanted at least 0"),
        ("--seconds", "nan", "seconds is nan; wanted a finite number"),
    ],
)
def test_counts_of_nothing_are_refused(suite, option, value, said, monkeypatch):
    """`--rounds 0` ran, for as many rounds as fit."""
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=f"^{said}$"):
        bench.main([suite, f"{option}={value}"])


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", f"--{name}=0"] for name in ("batch-size", "batches", "buckets", "dim")),
        *(["generate", f"--{name}=-1"] for name in ("sentences", "length", "vocab-size", "seed")),
        ["scaling", "--devices=0"],
        ["choose", "--seconds=-1"],
    ],
    ids=" ".join,
)
def test_sizes_of_nothing_are_refused(arguments, monkeypatch):
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(bench, "choose", lambda *_: pytest.fail("it ran"))
    name = arguments[1].removeprefix("--").partition("=")[0].replace("-", "_")
    with pytest.raises(ValueError, match=rf"{name} is -?\d[.0]*; wanted at least [01]"):
        bench.main(arguments)
