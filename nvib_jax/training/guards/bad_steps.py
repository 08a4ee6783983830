"""Reports bad steps and their sentences, and decides whether the run goes on.

The step itself detects on the device that it is bad, and then changes nothing
(`state.make_train_step`). Its flag is read here later, when the run waits for the device anyway.
"""

from collections.abc import Callable

import jax

from nvib_jax.checkpoint.store import Checkpoints
from nvib_jax.config import TrainConfig
from nvib_jax.data import Batches

_NAMED = 16  # how many sentences of a bad batch are named


class BadSteps:
    """Collects the steps' flags until the next `check`.

    Args:
      batches: to name the sentences of a bad step.
      checkpoints: to name the last good one.
      settings: `bad_step` says whether to stop, `log_every` how many in a row are too many.
      say: called with a line of text about skipped steps.
    """

    def __init__(
        self,
        batches: Batches,
        checkpoints: Checkpoints,
        settings: TrainConfig,
        say: Callable[[str], None],
    ):
        self._batches, self._checkpoints = batches, checkpoints
        self._settings, self._say = settings, say
        self._flags: dict[int, jax.Array] = {}
        self._in_a_row = 0

    def add(self, step: int, bad: jax.Array) -> None:
        """Note a step's flag, 0 or 1 for bad, without waiting for its value."""
        self._flags[step] = bad

    def check(self) -> None:
        """Report the steps that were bad since the last call.

        Raises:
          FloatingPointError: there was a bad step; with `bad_step` "skip", only if `log_every` of
            them came in a row.
        """
        flags, self._flags, longest = jax.device_get(self._flags), {}, 0
        for flag in flags.values():
            self._in_a_row = self._in_a_row + 1 if flag else 0
            longest = max(longest, self._in_a_row)
        steps = [step for step, flag in flags.items() if flag]
        if not steps:
            return
        ids = self._batches.sentences(steps[0] - 1)
        named = ", ".join(map(str, ids[:_NAMED])) + " ..." * (len(ids) > _NAMED)
        said = (
            f"step {steps[0]} has a loss or a gradient that is no finite number, or a spike; its "
            f"batch has the training sentences {named}"
        )
        if self._settings.bad_step == "skip" and longest < self._settings.log_every:
            more = f" (and {len(steps) - 1} more up to step {steps[-1]})" if len(steps) > 1 else ""
            self._say(f"{said}; it is skipped{more}")
            return
        saved, folder = self._checkpoints.steps(), self._checkpoints.folder
        good = (
            f"the last good checkpoint is of step {saved[-1]}" if saved else "no checkpoint is kept"
        )
        raise FloatingPointError(
            f"{said}; {good} in {folder}; lower train.learning_rate or train.clip, or "
            "--train.bad-step skip"
        )
