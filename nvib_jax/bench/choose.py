"""`nvib bench choose`: finds what `implementation=None` should use on the current device.

All implementations that run here are timed in turns, forward and backward in bfloat16 (float32 on a
CPU). The fastest that is accurate becomes a rule of `nvib_jax.attention.choice.FASTEST`. Accurate
means that its error against float64 is at most twice that of "xla"; and it has to be faster by more
than the noise of the timing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from nvib_jax.attention.choice import Rule
from nvib_jax.bench.attention import SHAPES, Attention, default_implementations
from nvib_jax.bench.device import Peak
from nvib_jax.bench.report import text
from nvib_jax.bench.timing import Row, measure

MARGIN = 1.05  # how many times faster an implementation must be to become a rule
# For forms with terms of width D (True) and without (False): the one that is measured for all.
_FORMS = {False: "expected_logit", True: "exact"}


@dataclass(frozen=True, kw_only=True)
class Choose:
    """Measure all implementations and print the lines of `FASTEST` for this device."""

    shape: tuple[str, ...] = ("small", "medium", "long")
    """Shapes of `nvib bench attention`."""
    seconds: float = 2.0
    """Time for each row."""

    def __post_init__(self) -> None:
        if unknown := [s for s in self.shape if s not in SHAPES]:
            raise ValueError(f"shape is {unknown[0]!r}; wanted one of {', '.join(SHAPES)}")


def choose(options: Choose) -> tuple[Rule, ...]:
    """Measure, print the rows and the rules; returns the rules."""
    kind, peak = jax.devices()[0].device_kind, Peak()
    skipped = ("plain", "reference", "kept")  # `implementation=None` can use none of these
    names = tuple(n for n in default_implementations() if n not in skipped)
    rules: list[Rule] = []
    for wide, form in _FORMS.items():
        taken = "xla"
        for shape in sorted(options.shape, key=lambda s: SHAPES[s].components):
            suite = Attention(
                shape=(shape,),  # type: ignore[arg-type]
                form=(form,),  # type: ignore[arg-type]
                implementation=names,
                dtype=("float32" if jax.default_backend() == "cpu" else "bfloat16",),
                passes=("backward",),
            )
            for group in suite.groups():
                rows = measure(
                    group,
                    seconds=options.seconds,
                    rounds=0,
                    peak=peak,
                    yardstick=peak.yardstick,
                )
                print(text(rows), end="\n\n", flush=True)
                best = fastest_right(rows)
                if best != taken:
                    rules.append((SHAPES[shape].components, wide, best))
                    taken = best
    print(f"    {kind!r}: {tuple(rules)!r},")
    return tuple(rules)


def fastest_right(rows: Sequence[Row]) -> str:
    """The fastest accurate implementation among rows, of which one must be "xla"."""
    plain = next(row for row in rows if row.implementation == "xla")
    if plain.seconds is None or plain.error is None:
        raise ValueError(f"'xla' was not measured: {plain.reason}")
    best = plain
    for row in rows:
        if row.seconds is None or row.error is None:
            continue
        right = row.error <= 2 * max(plain.error, 2.0**-20)
        if right and best.seconds is not None and row.seconds * MARGIN < best.seconds:
            best = row
    return best.implementation
