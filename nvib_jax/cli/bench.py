"""`nvib bench SUITE ...`: prints rows on standard output, and writes a JSON file if asked to."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from nvib_jax.bench import report, tables
from nvib_jax.bench.attention import Attention
from nvib_jax.bench.choose import Choose, choose
from nvib_jax.bench.data import Data
from nvib_jax.bench.device import Peak, machine
from nvib_jax.bench.generate import Generate
from nvib_jax.bench.pretrained import PretrainedSuite
from nvib_jax.bench.sampler import Sampler
from nvib_jax.bench.scaling import Scaling
from nvib_jax.bench.self_attention import SelfAttentionSuite
from nvib_jax.bench.timing import Case, Row, measure
from nvib_jax.bench.train import Train
from nvib_jax.cli.options import parse
from nvib_jax.fields import check_fields
from nvib_jax.files import write_whole


class Suite(Protocol):
    """The options of a suite, which make its groups of cases."""

    def groups(self) -> Iterator[list[Case]]:
        """Groups of cases; those of one group are timed in turns."""


SUITES: dict[str, type[Suite]] = {
    "attention": Attention,
    "self-attention": SelfAttentionSuite,
    "pretrained": PretrainedSuite,
    "train": Train,
    "generate": Generate,
    "sampler": Sampler,
    "scaling": Scaling,
    "data": Data,
}


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long, and where results go."""

    seconds: float = 2.0
    """Time for each row, beyond compiling and five rounds."""
    rounds: int | None = None
    """Exactly so many rounds; None means as many as fit."""
    output: Path | None = None
    """A JSON file to write."""


def main(arguments: Sequence[str]) -> None:
    """Run a suite, or print the table of an earlier run.

    Raises:
      ValueError: there is no such suite, or the file is not a report.
    """
    wanted = f"wanted one of {', '.join(SUITES)}, choose, or table"
    if not arguments:
        raise ValueError(f"no suite was given; {wanted}")
    name, rest = arguments[0], list(arguments[1:])
    if name in ("-h", "--help"):
        print(f"usage: nvib bench {{{','.join(SUITES)}}} [--help] [options]")
        print("       nvib bench choose              what implementation=None should take here")
        print("       nvib bench table FILE.json     the Markdown table of a JSON file")
        print("\nRows that are compared are timed in turns; each can be run alone by its options.")
        raise SystemExit(0)
    if name == "choose":
        options = parse(Choose, rest, prog="nvib bench choose")
        check_counts(options)
        choose(options)
        return
    if name == "table":
        if len(rest) != 1:
            raise ValueError("wanted one file, as in: nvib bench table bench.json")
        print(tables.markdown(json.loads(Path(rest[0]).read_text(encoding="utf-8"))))
        return
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; {wanted}")
    suite, timing = _parse(name, rest)
    check_counts(suite)
    check_counts(timing)
    found = run(suite, timing, ["nvib", "bench", *arguments])
    if timing.output is not None:
        timing.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(timing.output, json.dumps(found, indent=1) + "\n")


def check_counts(options: Any) -> None:
    """Check that whole numbers except seeds are at least 1, and that no number is below 0.

    Raises:
      ValueError: naming the option.
    """
    check_fields(options, "")
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            least = 1 if isinstance(part, int) and field.name != "seed" else 0
            if isinstance(part, int | float) and not isinstance(part, bool) and part < least:
                raise ValueError(f"{field.name} is {part}; wanted at least {least}")


def run(suite: Suite, timing: Timing, command: Sequence[str]) -> dict[str, Any]:
    """Measure every group, print its rows when it is done, and return the report."""
    peak = Peak()
    about = machine(peak, command)
    print(f"{about['device']}, jax {about['jax']}, load {about['load']}; share is of {peak.source}")
    rows: list[Row] = []
    for group in suite.groups():
        new = measure(
            group,
            seconds=timing.seconds,
            rounds=timing.rounds or 0,
            peak=peak,
            yardstick=peak.yardstick,
        )
        print(f"\n{report.text(new)}", flush=True)
        rows += new
    return report.to_json(about, " ".join(command), rows)


def _parse(name: str, arguments: list[str]) -> tuple[Suite, Timing]:
    suite: Any = SUITES[name]

    def both(
        suite: Annotated[suite, tyro.conf.arg(name="")],
        timing: Annotated[Timing, tyro.conf.arg(name="")],
    ) -> tuple[Suite, Timing]:
        return suite, timing

    return parse(
        both, arguments, prog=f"nvib bench {name}", description=suite.__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip
