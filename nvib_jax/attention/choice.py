"""Which implementation `implementation=None` takes: the fastest that was measured to be right.

`nvib bench choose` measures every implementation that runs on the device at hand and prints the
lines of `FASTEST` for it. A device that is not in the table takes "xla": nothing here is a guess.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """From this many components on, at a given width of the values.

    Attributes:
      components: S at least this.
      wide: the forms with terms of width D (exact, published) or those of head width.
      implementation: the name to take.
    """

    components: int
    wide: bool
    implementation: str


# Device kind (`jax.devices()[0].device_kind`) -> rules, the last that fits holds. Kinds measured so
# far: none but CPUs, where "xla" is the only one that runs compiled.
FASTEST: dict[str, tuple[Rule, ...]] = {}


def fastest(kind: str, components: int, wide: bool) -> str:
    """The implementation for a device kind, S components and a form."""
    fitting = [
        rule.implementation
        for rule in FASTEST.get(kind, ())
        if rule.wide == wide and components >= rule.components
    ]
    return fitting[-1] if fitting else "xla"
