"""The table of `nvib` commands, and the small ones.

A command's options are the fields of a frozen dataclass, which tyro shows with their defaults under
`--help`. `train` and `prepare` (`launch.py`) take a preset file and the fields of `Config`.
Commands on texts are in `text_commands.py`, those that change or compare their latents in
`latent_commands.py`, those on whole runs in `studies.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nvib_jax.cli import latent_commands, launch, options, pretrained, studies, text_commands
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


def _command(kind: type[T], function: Callable[[T], Any]) -> Callable[[list[str]], None]:
    """A function that parses a command's arguments to options and runs it."""
    return lambda arguments: function(options.parse_command(kind, arguments))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": launch.train,
    "prepare": launch.prepare,
    "reconstruct": _command(text_commands.Reconstruct, text_commands.reconstruct),
    "sample": _command(text_commands.Sample, text_commands.sample),
    "interpolate": _command(text_commands.Interpolate, text_commands.interpolate),
    "merge": _command(latent_commands.Merge, latent_commands.merge),
    "edit": _command(latent_commands.Edit, latent_commands.edit),
    "paraphrase": _command(latent_commands.Paraphrase, latent_commands.paraphrase),
    "drop": _command(latent_commands.Drop, latent_commands.drop),
    "embed": _command(latent_commands.Embed, latent_commands.embed),
    "play": _command(text_commands.Play, text_commands.play),
    "export": _command(Export, _export),
    "evaluate": _command(studies.Evaluate, studies.evaluate),
    "sweep": _command(studies.Sweep, studies.sweep),
    "report": _command(studies.Report, studies.report),
    "regularise": _command(pretrained.Regularise, pretrained.regularise),
    "generate": _command(pretrained.Generate, pretrained.generate),
    "score": _command(pretrained.Score, pretrained.score),
    "inspect": _command(pretrained.Inspect, pretrained.inspect),
    "bench": _bench,
    "doctor": _command(Doctor, _doctor),
}
