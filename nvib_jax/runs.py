"""Training as one function, as `nvib train` and notebooks call it: data, steps, summary.

`nvib_jax.train` is the `train` of this file. `nvib_jax.evaluate` and `nvib_jax.load` take the run
that it returns, or the folder of any other run.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nvib_jax.config import Config
from nvib_jax.data.config import fit_to_text
from nvib_jax.evaluation.summary import summarize_run
from nvib_jax.presets import changed, load_preset
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop
from nvib_jax.training.claim import Claim
from nvib_jax.training.logging import Callback


@dataclass(frozen=True)
class Run:
    """A trained run. It can be given wherever the folder of a run is wanted.

    Attributes:
      folder: where its checkpoints, metrics and figures are.
      scores: what the summary measured of the model after its last step, as
        `nvib_jax.evaluation.evaluate`; empty if there was no summary.
      tokens_per_second: median over the log windows, compilation left out; 0 if there is none.
    """

    folder: Path
    scores: Mapping[str, float]
    tokens_per_second: float

    def __fspath__(self) -> str:
        return str(self.folder)

    @cached_property
    def model(self) -> TextModel:
        """The best model on held-out text, opened once; `nvib_jax.load` opens the last one too."""
        return TextModel.load(self.folder)


def train(
    config: Config | str | Path,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    name: str = "",
    resume: bool | None = False,
    summary: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a model from text, on all devices of all processes, and measure it at the end.

    It does what `nvib train` does, except that the command also keeps compiled code for the next
    process (`nvib_jax.compilation_cache.use_compilation_cache` does so here).

    Args:
      config: the whole configuration; or a preset: its file, or its name, such as "quickstart".
      changes: other values, by section and field, as `nvib train` has them as options.
      name: of the run, for its folder where `train.run_dir` is empty; empty is the preset's.
      resume: continue the run in `train.run_dir` from its last undamaged checkpoint. None does so
        if there is a checkpoint, and starts a new run otherwise.
      summary: measure the model at the end beside an untrained one, and write `summary.txt` and
        `scores.json`.
      callbacks: functions of a dict of metrics and the step, called by the first process whenever
        metrics are written. The metrics are named "train/loss", "validation/loss" and so on. What a
        callback raises ends the run; its checkpoints are kept.

    Returns:
      The run. If `train.run_dir` is empty, its folder is runs/NAME, or the next that is free.

    Raises:
      FileExistsError: the run has checkpoints and `resume` is False, or another process is using
        its folder.
      FileNotFoundError: there is no such preset; `resume` is True and there is no checkpoint.
      FloatingPointError: a bad step, by `train.bad_step`; the checkpoints before are kept.
      KeyboardInterrupt: after Ctrl-C and a last checkpoint; `resume` goes on from there.
      OSError: a checkpoint cannot be written; the ones before are kept.
      ValueError: a config that does not fit the data, the devices or the checkpoint, or a change of
        a field that is not there.

    A shorter quickstart, measured on text it has not seen, and used:

        run = nvib_jax.train("quickstart", {"train": {"steps": 500}})
        nvib_jax.evaluate(run)["scores"]["exact"]
        run.model.sample(5)

    With Weights & Biases, whose `log` takes a dict and a step:

        with wandb.init(project="nvib") as board:
            nvib_jax.train("quickstart", callbacks=[board.log])
    """
    if isinstance(config, Config):
        preset, name = config, name or "run"
    else:
        preset, name = load_preset(config), name or Path(config).stem
    wanted = changed(preset, changes or {})
    wanted = dataclasses.replace(wanted, data=fit_to_text(wanted.data, preset.data))
    # The folder is claimed first, because another run might otherwise take the same one meanwhile.
    named = wanted.train.run_dir
    with Claim([named] if named else _folders(Path("runs"), name, resume is not False)) as claim:
        folder = claim.folder
        trained = loop.train(
            changed(wanted, {"train": {"run_dir": str(folder)}}),
            resume=resume,
            claim=claim,
            callbacks=callbacks,
            then=summarize_run if summary else None,
        )
    return Run(folder, trained.result or {}, trained.tokens_per_second)


def _folders(parent: Path, name: str, going_on: bool) -> Iterator[Path]:
    """Candidates for the run's folder: runs/NAME, runs/NAME-2 ... that hold no run yet.

    If a run is to be continued, it is only the last of them that holds a run.
    """
    paths = [parent / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000)]
    used = [path for path in paths if (path / "config.json").exists()]
    if going_on:
        yield used[-1] if used else paths[0]
    else:
        yield from (path for path in paths if path not in used)
