"""Steps that were not taken: which they were, what was in their batches, and whether to go on.

The step itself decides, on the device, and leaves everything as it was (`state.make_train_step`);
this is told afterwards, when somebody waits for the device anyway.
"""

from collections.abc import Callable

import jax

from nvib_jax.checkpoint.store import Checkpoints
from nvib_jax.config import TrainConfig
from nvib_jax.data import Batches

_NAMED = 16  # sentences


class BadSteps:
    """The flags of the steps since the last look.

    Args:
      batches: whose sentences are named.
      checkpoints: of which the last is named.
      settings: `bad_step` says whether to stop, `log_every` how many in a row are too many.
      say: told what is skipped.
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
        """A step and whether it was bad, 0 or 1; nothing waits for it."""
        self._flags[step] = bad

    def check(self) -> None:
        """Say what was skipped since the last look.

        Raises:
          FloatingPointError: a bad step, or as many in a row as `bad_step` "skip" bears.
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
