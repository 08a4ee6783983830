"""`nvib train` and `nvib prepare`: reads a preset and its overrides, and starts the run."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from nvib_jax.cli.options import parse
from nvib_jax.config import Config
from nvib_jax.data.config import fit_to_text
from nvib_jax.effects import check_typed
from nvib_jax.presets import load_preset

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Fields = Annotated[Config, tyro.conf.arg(name="")]
T = TypeVar("T", "Train", "Prepare")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Text to a trained model and a summary."""

    resume: Flag = False
    """Go on from the last checkpoint."""
    auto_resume: Flag = False
    """Go on from the last checkpoint if there is one, begin otherwise."""
    no_summary: Flag = False
    """Leave out the measuring at the end."""
    dry_run: Flag = False
    """Compile a step, say what it needs, and end."""
    topology: str = ""
    """Dry run for a TPU slice that is not here, as v5e:2x4."""
    coordinator: str | None = None
    """HOST:PORT of process 0, outside Cloud TPU, SLURM and Open MPI; with the next two."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, from 0."""
    config: Fields = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Text to tokens, kept in data.cache_dir; train does it where it is missing."""

    config: Fields = field(default_factory=Config)


def train(arguments: list[str]) -> None:
    """Train, or with `--dry-run` print what training would need."""
    options, name = _read(Train, arguments)
    if options.dry_run or options.topology:
        from nvib_jax.training.dry_run import dry_run

        print(dry_run(options.config, topology=options.topology))
        return
    from nvib_jax.processes import initialize
    from nvib_jax.runs import train

    initialize(options.coordinator, options.processes, options.process)
    resume = None if options.auto_resume else options.resume
    train(options.config, name=name, resume=resume, summary=not options.no_summary)


def prepare(arguments: list[str]) -> None:
    """Prepare the data."""
    options, _ = _read(Prepare, arguments)
    for word in arguments:
        section = word.partition(".")[0]
        if section.startswith("--") and section not in ("--data", "--help") and "." in word:
            raise ValueError(f"{word.partition('=')[0]} has no effect on nvib prepare")
    from nvib_jax.data import prepare

    data = prepare(options.config.data, progress=print)
    counts = ", ".join(f"{len(n):,} {split}" for split, n in data.lengths.items())
    print(f"{data.path}: {counts} sentences, vocabulary {data.vocab_size:,}")


def _read(kind: type[T], arguments: list[str]) -> tuple[T, str]:
    """(the options, the name of the preset): CONFIG.py and overrides of its fields."""
    command = kind.__name__.lower()
    path, about = "", "the library's, with a CONFIG.py the preset's"
    flags = {f"--{n.replace('_', '-')}" for n, hint in kind.__annotations__.items() if hint is Flag}
    place = next((i for i, word in enumerate(arguments) if word not in flags), len(arguments))
    if arguments[place:] and not arguments[place].startswith("-"):
        path, about = arguments[place], "the preset's"
        arguments = arguments[:place] + arguments[place + 1 :]
    elif "-h" not in arguments and "--help" not in arguments:
        raise ValueError(f"wanted a config first, as in: nvib {command} quickstart")
    preset = load_preset(path) if path else Config()
    options = parse(
        kind,
        arguments,
        default=kind(config=preset),
        prog=f"nvib {command} CONFIG.py",
        command=f"nvib {command} {path or 'CONFIG.py'}",
        description=f"{kind.__doc__} Every field can be given; defaults are {about}.",
    )
    check_typed(arguments, options.config)
    data = fit_to_text(options.config.data, preset.data)
    options = dataclasses.replace(options, config=dataclasses.replace(options.config, data=data))
    return options, Path(path).stem or "run"
