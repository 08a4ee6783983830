"""The command lines of `nvib train` and `nvib prepare`: a preset, its fields, and how to launch."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from nvib_jax.data.config import fit_to_text
from nvib_jax.options import parse
from nvib_jax.training.config import Config, load_preset

_ABOUT = {
    "prepare": "Text to tokens, kept in data.cache_dir; train does it where it is missing. ",
    "train": (
        "Text to a trained model and a summary. --resume goes on from the last checkpoint, "
        "--auto-resume does so if there is one, --no-summary leaves out the measuring at the end, "
        "--dry-run compiles a step, says what it needs and ends; --topology v5e:2x4 does that for "
        "a slice that is not here. --coordinator HOST:PORT --processes N --process I say where the "
        "other processes are, outside Cloud TPU, SLURM and Open MPI. "
    ),
}
_OF_PRESET = "Every field can be given; defaults are the preset's."
_OF_NONE = "Every field can be given; defaults are the library's, with a CONFIG.py the preset's."


def read_config(
    command: str, arguments: list[str], flags: Iterable[str] = ()
) -> tuple[Config, set[str]]:
    """CONFIG.py and overrides -> (config, the flags that were there); see `nvib train --help`."""
    given = {flag for flag in flags if flag in arguments}
    arguments = [a for a in arguments if a not in given]
    paths = [a for a in arguments if not a.startswith("-")][:1]
    preset = Config()
    if paths and arguments[0] == paths[0]:
        preset, arguments = load_preset(paths[0]), arguments[1:]
    elif "-h" not in arguments and "--help" not in arguments:
        raise ValueError(f"wanted a config first, as in: nvib {command} configs/quickstart.py")
    more = "".join(f" [{flag}]" for flag in flags)
    config = parse(
        Config,
        arguments,
        default=preset,
        prog=f"nvib {command} CONFIG.py{more}",
        command=f"nvib {command} {paths[0] if paths else 'CONFIG.py'}",
        description=_ABOUT[command] + (_OF_PRESET if paths else _OF_NONE),
    )
    config = dataclasses.replace(config, data=fit_to_text(config.data, preset.data))
    if not config.train.run_dir:
        name = Path(paths[0]).stem if paths else "run"
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, run_dir=str(_free("runs", name, given)))
        )
    return config, given


def _free(parent: str, name: str, flags: set[str]) -> Path:
    """runs/NAME, or the first of runs/NAME-2, -3 ... without a run; with --resume the last used."""
    paths = [Path(parent) / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000)]
    used = [path for path in paths if (path / "config.json").exists()]
    if flags & {"--resume", "--auto-resume"}:
        return used[-1] if used else paths[0]
    return next(path for path in paths if path not in used)


def read_launch(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Take out what is of the launch and not of the config: the processes, the slice."""
    kinds: dict[str, Callable[[str], Any]] = {
        "coordinator": str,
        "processes": int,
        "process": int,
        "topology": str,
    }
    rest, found, todo = [], {}, iter(arguments)
    for argument in todo:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in kinds:
            rest.append(argument)
            continue
        value = value if equals else next(todo, "")
        if not value or value.startswith("--"):
            raise ValueError(f"--{name} has no value")
        try:
            found[name] = kinds[name](value)
        except ValueError:
            raise ValueError(f"--{name} is {value!r}; wanted a number") from None
    return rest, found
