"""Which implementation `implementation=None` takes: the fastest that was measured to be right.

`nvib bench choose` measures every implementation that runs on the device at hand and prints the
lines of `FASTEST` for it. A device that is not in the table takes "xla": nothing here is a guess.
"""

# Device kind (`jax.devices()[0].device_kind`) -> rules (components, wide, implementation): what to
# take from this many components on, for the forms with terms of width D (exact, published) where
# wide, otherwise for those of head width. The last that fits holds. Kinds measured so far: none but
# CPUs, where "xla" is the only one that runs compiled.
Rule = tuple[int, bool, str]
FASTEST: dict[str, tuple[Rule, ...]] = {}


def fastest(kind: str, components: int, wide: bool) -> str:
    """The implementation for a device kind, S components and a form."""
    taken = "xla"
    for least, rule_wide, implementation in FASTEST.get(kind, ()):
        if rule_wide == wide and components >= least:
            taken = implementation
    return taken
