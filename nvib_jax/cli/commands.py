"""The table of `nvib` commands, and the small ones.

A command's options are the fields of a frozen dataclass, which tyro shows with their defaults under
`--help`. `train` and `prepare` (`launch.py`) take a preset file and the fields of `Config`.
Commands on texts are in `text_commands.py`, those that change or compare their latents in
`latent_commands.py`, those on whole runs in `studies.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from nvib_jax.cli import (
    finetune,
    latent_commands,
    launch,
    options,
    pretrained,
    studies,
    text_commands,
)
from nvib_jax.cli.completion import Completion, script
from nvib_jax.cli.options import Run, Which

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as model.safetensors and model.json, to be read here or anywhere."""

    run: Run
    """Folder of a run."""
    out: Path
    """Folder to write to; every command takes it where it takes a run."""
    checkpoint: Which = "best"
    """Which checkpoint."""


def _export(given: Export) -> None:
    from nvib_jax.checkpoint.exported import export

    model = options.load(given.run, given.checkpoint)
    for file in export(model.description, model.params, given.out):
        print(file)


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print versions, devices, and which implementations of attention run here and why not."""


def _doctor(_: Doctor) -> None:
    from nvib_jax.cli.doctor import main

    main()


def _bench(arguments: list[str]) -> None:
    from nvib_jax.cli.bench import main

    main(arguments)


@dataclass(frozen=True)
class Command:
    """A command: called with the words after its name, it parses and runs them.

    Attributes:
      kind: the dataclass of its options, for the shell's completion.
      run: called with the words.
    """

    kind: Any
    run: Callable[[list[str]], None]

    def __call__(self, arguments: list[str]) -> None:
        """Parse the words after the command's name, and run it."""
        self.run(arguments)


def _command(kind: type[T], function: Callable[[T], Any]) -> Command:
    """A command whose options are parsed and given to a function."""
    return Command(
        Annotated[kind, tyro.conf.FlagCreatePairsOff],
        lambda arguments: function(options.parse_command(kind, arguments)),
    )


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Measure time, memory and error; `nvib bench` shows of what."""


def _completion(given: Completion) -> None:
    print(script({name: command.kind for name, command in COMMANDS.items()}, given.shell), end="")


COMMANDS: dict[str, Command] = {
    "train": Command(launch.Train, launch.train),
    "prepare": Command(launch.Prepare, launch.prepare),
    "reconstruct": _command(text_commands.Reconstruct, text_commands.reconstruct),
    "sample": _command(text_commands.Sample, text_commands.sample),
    "interpolate": _command(text_commands.Interpolate, text_commands.interpolate),
    "merge": _command(latent_commands.Merge, latent_commands.merge),
    "edit": _command(latent_commands.Edit, latent_commands.edit),
    "paraphrase": _command(latent_commands.Paraphrase, latent_commands.paraphrase),
    "drop": _command(latent_commands.Drop, latent_commands.drop),
    "embed": _command(latent_commands.Embed, latent_commands.embed),
    "play": _command(text_commands.Play, text_commands.play),
    "fit-prior": _command(studies.FitPrior, studies.fit_prior),
    "export": _command(Export, _export),
    "evaluate": _command(studies.Evaluate, studies.evaluate),
    "sweep": _command(studies.Sweep, studies.sweep),
    "report": _command(studies.Report, studies.report),
    "metrics": _command(studies.Metrics, studies.metrics),
    "regularise": _command(pretrained.Regularise, pretrained.regularise),
    "finetune": _command(finetune.Finetune, finetune.run),
    "generate": _command(pretrained.Generate, pretrained.generate),
    "score": _command(pretrained.Score, pretrained.score),
    "inspect": _command(pretrained.Inspect, pretrained.inspect),
    "bench": Command(_Bench, _bench),
    "doctor": _command(Doctor, _doctor),
    "completion": _command(Completion, _completion),
}
