"""Measures cases: each is compiled once, then all are timed in turns (A B C A B C ...).

Only times of the same round are compared, because machines are shared and clock rates change. The
spread of a row is over rounds.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LEAST_ROUNDS = 5
_LEAST_SECONDS = 0.005  # a faster call is repeated within a round until it takes this long


@dataclass(frozen=True)
class Program:
    """A compiled function and its arguments.

    Attributes:
      function: compiled; its results are waited for.
      args: its arguments, random numbers and never zeros.
      compile_seconds: the time for tracing, lowering and compiling.
      memory: bytes of temporaries and outputs as the compiler reports them; None if it does not.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    compile_seconds: float
    memory: int | None

    def __call__(self) -> Any:
        """Run once and wait."""
        return jax.block_until_ready(self.function(*self.args))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row before it is measured.

    Attributes:
      implementation: the name that distinguishes the rows of a group.
      labels: what they share: form, shape, dtype, pass.
      prepare: compiles the program; if it raises, the row has the error as its `reason`.
      flops: floating point operations that the mathematics needs, per call.
      amount: units of work per call, such as valid tokens.
      unit: the name of a unit of work.
      error: a function that takes the compiled function and returns its error against float64.
      extra: further numbers for the row.
    """

    implementation: str
    labels: dict[str, str]
    prepare: Callable[[], Program]
    flops: float | None = None
    amount: float | None = None
    unit: str = ""
    error: Callable[[Callable[..., Any]], float] | None = None
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured row. If it could not be measured, numbers are None and `reason` says why.

    Attributes:
      seconds: median over rounds of the time of one call.
      spread: its quartiles.
      rounds: number of rounds.
      ratio: median over rounds of (the baseline's time / this row's) in the same round.
      ratio_spread: its quartiles.
      baseline: implementation that `ratio` is against.
      per_second: units of work per second.
      flops_per_second: needed operations per second.
      share: of the device's peak, or of its matmul rate (the machine's description says which).
      memory: bytes of temporaries and outputs.
      error: largest error against float64, relative to the largest entry.
    """

    implementation: str
    labels: dict[str, str]
    seconds: float | None = None
    spread: tuple[float, float] | None = None
    rounds: int = 0
    ratio: float | None = None
    ratio_spread: tuple[float, float] | None = None
    baseline: str = ""
    per_second: float | None = None
    unit: str = ""
    flops: float | None = None
    flops_per_second: float | None = None
    share: float | None = None
    memory: int | None = None
    compile_seconds: float | None = None
    error: float | None = None
    extra: dict[str, float] = field(default_factory=dict)
    reason: str = ""


def compile_program(function: Callable[..., Any], *args: Any) -> Program:
    """`jax.jit(function)` compiled for these arguments; none becomes a constant of the program."""
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    compiled = jitted.lower(*args).compile()
    return Program(compiled, args, time.perf_counter() - start, memory_of(compiled))


def memory_of(compiled: Any) -> int | None:
    """Bytes of temporaries and new outputs of a compiled function (donated ones are not new)."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + fresh)


def measure(
    cases: Sequence[Case],
    *,
    seconds: float = 2.0,
    rounds: int = 0,
    peak: Callable[[str], float | None] = lambda dtype: None,
    yardstick: tuple[Callable[[], Any], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Measure a group of cases together.

    Args:
      cases: the others are compared with the first one that can run.
      seconds: time for each row, in addition to compiling and the least number of rounds.
      rounds: exactly this many rounds; 0 means as many as fit in `seconds`.
      peak: maps a dtype's name to the device's FLOP/s, or None if that is unknown.
      yardstick: (a call, its operations), timed in every round. If there is no peak, shares are
        relative to its rate in the same round.
      clock: returns the time in seconds.

    Returns:
      One row for each case, in order.
    """
    programs, finite, rows = _prepare(cases)
    calls: list[Callable[[], Any]] = list(programs.values())
    calls += [yardstick[0]] if programs and yardstick else []
    times = interleave(calls, seconds=seconds, rounds=rounds, clock=clock)
    rates = yardstick[1] / times[-1] if programs and yardstick else None
    base = cases[next(iter(programs))].implementation if programs else ""
    for (i, program), taken in zip(programs.items(), times[: len(programs)], strict=True):
        row = _row(cases[i], program, taken, times[0], base, finite[i])
        share = _share(cases[i], taken, peak(cases[i].labels.get("dtype", "float32")) or rates)
        rows[i] = replace(row, share=share)
    return [rows[i] for i in range(len(cases))]


def _prepare(
    cases: Sequence[Case],
) -> tuple[dict[int, Program], dict[int, bool], dict[int, Row]]:
    """Three dicts by a case's index: compiled programs, whether their results are finite, and the
    rows of cases that cannot run.
    """
    programs: dict[int, Program] = {}
    finite: dict[int, bool] = {}
    rows: dict[int, Row] = {}
    for i, case in enumerate(cases):
        try:
            program = case.prepare()
            finite[i] = _finite(program())
            programs[i] = program
        except Exception as error:
            # That a kernel fails to compile or needs too much memory is a result, too. But in the
            # first case only NotImplementedError is, because the others are compared with it.
            if i == 0 and not isinstance(error, NotImplementedError):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            rows[i] = Row(implementation=case.implementation, labels=case.labels, reason=reason)
    return programs, finite, rows


def interleave(
    calls: Sequence[Callable[[], Any]],
    *,
    seconds: float,
    rounds: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """The seconds that one call of each takes in each round, shape (calls, rounds)."""
    repeats = []
    for call in calls:
        start = clock()
        call()
        once = max(clock() - start, 1e-9)
        repeats.append(max(1, min(1000, int(_LEAST_SECONDS / once))))
    table: list[list[float]] = []
    begin = clock()
    while calls and _more(len(table), rounds, clock() - begin, seconds * len(calls)):
        line = []
        for call, count in zip(calls, repeats, strict=True):
            start = clock()
            for _ in range(count):
                call()
            line.append((clock() - start) / count)
        table.append(line)
    return np.array(table).T


def _more(done: int, rounds: int, elapsed: float, budget: float) -> bool:
    return done < rounds if rounds else done < LEAST_ROUNDS or elapsed < budget


def _row(
    case: Case,
    program: Program,
    times: np.ndarray,
    base_times: np.ndarray,
    base: str,
    finite: bool,
) -> Row:
    median, spread = _quartiles(times)
    ratio, ratio_spread = _quartiles(base_times / times)
    rate = None if case.flops is None else case.flops / median
    error = None if case.error is None else case.error(program.function)
    finite = finite and (error is None or math.isfinite(error))
    return Row(
        implementation=case.implementation,
        labels=case.labels,
        seconds=median,
        spread=spread,
        rounds=len(times),
        ratio=ratio,
        ratio_spread=ratio_spread,
        baseline=base,
        per_second=None if case.amount is None else case.amount / median,
        unit=case.unit,
        flops=case.flops,
        flops_per_second=rate,
        memory=program.memory,
        compile_seconds=program.compile_seconds,
        error=error if error is not None and math.isfinite(error) else None,
        extra=case.extra,
        reason="" if finite else "timed, but its result is not finite",
    )


def _share(case: Case, times: np.ndarray, top: float | np.ndarray | None) -> float | None:
    """Median over rounds of the case's rate over `top`, a number or one for each round."""
    return None if case.flops is None or top is None else float(np.median(case.flops / times / top))


def _finite(tree: Any) -> bool:
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in floats)


def _quartiles(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(middle), (float(low), float(high))
