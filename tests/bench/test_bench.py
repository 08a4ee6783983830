"""`nvib bench`: how rows are timed, what is said of them, the command and its choice."""

import dataclasses
import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from nvib_jax import cli
from nvib_jax.attention import choice
from nvib_jax.bench import attention, device, report, tables
from nvib_jax.bench import choose as choose_module
from nvib_jax.bench.choose import fastest_right
from nvib_jax.bench.timing import Case, Program, Row, compile_program, interleave, measure
from nvib_jax.cli import bench

TINY = attention.Shape(2, 2, 6, 5, 16)
QUICK = {"seconds": 0.0, "rounds": 2}


def case(name: str, call=lambda: None, **options) -> Case:
    program = Program(lambda: call(), (), 0.5, 7)
    settings = {"labels": {"dtype": "float32"}, "prepare": lambda: program, **options}
    return Case(implementation=name, **settings)


def impossible() -> Program:
    raise NotImplementedError("not on\n this device")


# ---- timing


def test_rows_are_timed_in_turns():
    """a b c a b c a b c, after each has run once."""
    ticks, order = itertools.count(), []
    calls = [lambda name=name: order.append(name) for name in "abc"]
    table = interleave(calls, seconds=0, rounds=3, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abc" + "abc" * 3
    assert table.shape == (3, 3)


def test_median_and_spread_are_over_rounds_and_ratios_within_them():
    """b is twice as quick in every round, however busy the machine is in it."""
    now, busy = [0.0], iter([1, 1, 1, 1, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 100.0, 100.0])

    def taking(seconds: float):
        def call() -> None:
            now[0] += seconds * next(busy)

        return call

    a, b = measure([case("a", taking(2.0)), case("b", taking(1.0))], rounds=5, clock=lambda: now[0])
    assert (a.seconds, a.spread, a.rounds) == (6.0, (4.0, 8.0), 5)
    assert (b.seconds, b.spread) == (3.0, (2.0, 4.0))
    assert (b.ratio, b.ratio_spread, b.baseline) == (2.0, (2.0, 2.0), "a")
    assert (a.memory, a.compile_seconds) == (7, 0.5)


def test_rounds_go_on_until_the_time_is_up():
    ticks = itertools.count()
    table = interleave([lambda: None] * 2, seconds=30.0, clock=lambda: float(next(ticks)))
    assert table.shape[1] > 5
    ticks = itertools.count()
    table = interleave([lambda: None], seconds=0.0, clock=lambda: float(next(ticks)))
    assert table.shape[1] == 5


def test_an_impossible_row_has_its_reason_and_is_no_baseline():
    rows = measure([case("a", prepare=impossible), case("b"), case("c")], **QUICK)
    assert (rows[0].reason, rows[0].seconds) == ("not on this device", None)
    assert [row.baseline for row in rows[1:]] == ["b", "b"]
    assert measure([case("a", prepare=impossible)], **QUICK)[0].reason == "not on this device"


def test_rates_are_of_the_median():
    ticks = itertools.count()
    (row,) = measure(
        [case("a", flops=10.0, amount=4.0)], rounds=3, clock=lambda: float(next(ticks)),
        peak=lambda dtype: {"float32": 40.0}[dtype],
    )  # fmt: skip
    assert (row.per_second, row.flops_per_second, row.share) == (4.0, 10.0, 0.25)


def test_on_a_cpu_shares_are_of_a_product_timed_in_the_same_rounds():
    """The machine gets slower and slower; a takes twice the yardstick's time for its operations."""
    now, busy = [0.0], [1.0]

    def taking(seconds: float):
        def call() -> None:
            now[0] += seconds * busy[0]
            busy[0] *= 1.0 if seconds == 2.0 else 3.0

        return call

    (row,) = measure(
        [case("a", taking(2.0), flops=10.0)], rounds=4, clock=lambda: now[0],
        yardstick=(taking(1.0), 10.0),
    )  # fmt: skip
    assert row.share == pytest.approx(0.5)
    assert row.baseline == "a"


def test_a_result_that_is_not_finite_is_flagged():
    wrong, failing = case("a", error=lambda _: math.nan), case("b", lambda: np.float32(np.inf))
    for row in measure([wrong, failing], **QUICK):
        assert row.error is None
        assert "not finite" in row.reason
        json.dumps(dataclasses.asdict(row), allow_nan=False)


def test_memory_counts_temporaries_and_outputs():
    x = jnp.ones((256, 256), jnp.float32)
    memory = compile_program(lambda x: jnp.tanh(x @ x) @ x, x).memory
    assert memory is None or memory >= 2 * x.nbytes


# ---- report and command


def some_rows() -> list[Row]:
    return measure(
        [case("a", flops=1e6, amount=3.0, unit="tokens"), case("b", prepare=impossible)], **QUICK
    )


def test_rows_survive_json():
    rows = some_rows()
    found = report.to_json({"device": "cpu"}, "nvib bench", rows)
    assert report.from_json(json.loads(json.dumps(found, allow_nan=False))) == rows
    for wrong in ({}, [], {"rows": [{"colour": "red"}]}):
        with pytest.raises(ValueError, match="no report of nvib bench"):
            report.from_json(wrong)


def test_tables_say_what_was_measured_and_why_not():
    rows = some_rows()
    text = report.text(rows)
    assert "not on this device" in text
    assert "tokens" in text
    found = report.to_json({"device": "cpu", "date": "today"}, "nvib bench x", rows)
    page = tables.markdown(found).splitlines()
    assert len({line.count("|") for line in page[:4]}) == 1
    assert page[-1] == "`nvib bench x` on cpu, today."


def test_units():
    assert report._duration(0.0123) == "12.3 ms"
    assert report._duration(3e-8) == "30 ns"
    assert report._rate(1.5e9) == "1.5 G"
    assert report._rate(1.5e3, " tokens") == "1.5 k tokens"
    assert report._rate(2.0, " tokens") == "2 tokens"


def test_the_command_writes_json_and_its_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(attention.SHAPES, "small", TINY)
    monkeypatch.setattr(device, "_SIDE", 8)
    path = tmp_path / "new" / "bench.json"
    arguments = ["--shape", "small", "--form", "impulse", "--passes", "forward", "--rounds", "2"]
    arguments += ["--implementation", "xla", "--output", str(path)]
    assert cli.main(["bench", "attention", *arguments]) == 0
    assert "impulse" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["command"] == " ".join(["nvib", "bench", "attention", *arguments])
    assert found["machine"]["platform"] == "cpu"
    (row,) = report.from_json(found)
    assert (row.implementation, row.rounds) == ("xla", 2)
    assert 0 < row.share < math.inf
    assert cli.main(["bench", "table", str(path)]) == 0
    assert capsys.readouterr().out.startswith("| shape | form | dtype | pass |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "no suite was given; wanted one of attention, self-attention, pretrained, ",
        ),
        (
            ["atention"],
            "there is no suite 'atention'; wanted one of attention, self-attention, pretrained",
        ),
        (["table"], "wanted one file, as in: nvib bench table bench.json"),
        (["sampler", "--seconds", "-1"], "wanted at least 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("suite", [None, *bench.SUITES])
def test_help(suite, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *([suite] if suite else []), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "attention" in out if suite is None else "--output" in out and "--seconds" in out


def test_a_known_device_has_its_peak(monkeypatch):
    peak = device.Peak.__new__(device.Peak)
    peak.yardstick = None
    for kind, want in (("NVIDIA H200", 989e12), ("TPU v5 lite", 197e12), ("Sun 4", None)):
        peak.kind = kind
        assert peak("bfloat16") == want
    assert "no peak" in peak.source


# ---- choose


def rows_of(**times_and_errors):
    return [
        Row(implementation=name, labels={}, seconds=seconds, error=error)
        for name, (seconds, error) in times_and_errors.items()
    ]


@pytest.mark.parametrize(
    ("rows", "want"),
    [
        ({"xla": (1.0, 1e-6), "pallas": (0.5, 1e-6)}, "pallas"),
        ({"xla": (1.0, 1e-3), "pallas": (0.5, 3e-3)}, "xla"),  # fast and wrong
        ({"xla": (1.0, 1e-6), "pallas": (0.97, 1e-6)}, "xla"),  # within the noise
        ({"xla": (1.0, 1e-6), "pallas": (None, None)}, "xla"),  # not here
        ({"xla": (1.0, 1e-6), "cudnn": (0.5, 1e-6), "pallas": (0.4, 1e-6)}, "pallas"),
    ],
)
def test_the_fastest_that_is_right(rows, want):
    assert fastest_right(rows_of(**rows)) == want


def test_choose_prints_the_line_for_the_table(monkeypatch, capsys):
    """On a CPU only xla runs compiled, so there is no rule; a faster kernel makes one a form."""
    monkeypatch.setattr(attention, "SHAPES", {"small": TINY})
    monkeypatch.setattr(choose_module, "SHAPES", {"small": TINY})
    options = choose_module.Choose(shape=("small",), seconds=0.0)
    assert choose_module.choose(options) == ()
    assert capsys.readouterr().out.endswith("    'cpu': (),\n")
    monkeypatch.setattr(choose_module, "fastest_right", lambda rows: "pallas")
    rules = choose_module.choose(options)
    assert rules == tuple((TINY.components, wide, "pallas") for wide in (False, True))
    monkeypatch.setattr(choice, "FASTEST", {"here": rules})
    assert choice.fastest("here", TINY.components, wide=True) == "pallas"
    assert choice.fastest("here", TINY.components - 1, wide=True) == "xla"
    assert choice.fastest("elsewhere", 10_000, wide=True) == "xla"
    with pytest.raises(ValueError, match="shape is 'tall'; wanted one of small"):
        choose_module.Choose(shape=("tall",))
