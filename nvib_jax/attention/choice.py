"""Which implementation `implementation=None` uses: the fastest one that was measured and correct.

`nvib bench choose` measures every implementation that runs on the current device and prints the
lines of `FASTEST` for it. A device that is not in the table uses "xla", because nothing is guessed.
"""

# Device kind (`jax.devices()[0].device_kind`) -> rules (components, wide, implementation). A rule
# says which implementation to use if there are at least this many components. `wide` rules are for
# the forms with terms of width D (exact, published), the others for the remaining forms. If several
# rules fit, the last one counts. Only CPUs have been measured so far, and "xla" is the only
# implementation that runs compiled on them; so the table is empty.
Rule = tuple[int, bool, str]
FASTEST: dict[str, tuple[Rule, ...]] = {}


def fastest(kind: str, components: int, wide: bool) -> str:
    """The implementation to use on a device kind, for S components and a form (wide or not)."""
    taken = "xla"
    for least, rule_wide, implementation in FASTEST.get(kind, ()):
        if rule_wide == wide and components >= least:
            taken = implementation
    return taken
