"""Writes metrics to JSON lines, to TensorBoard files, to callbacks, and to the terminal."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from rich.progress import Progress, TextColumn

from nvib_jax.files import write_whole
from nvib_jax.processes import is_first
from nvib_jax.progress import COLUMNS, console_of, to_standard_error
from nvib_jax.training.records import METRICS, records_of

# Called with {"train/loss": ...} or {"validation/loss": ...}, and the step.
Callback = Callable[[dict[str, float], int], object]


class MetricWriter:
    """Appends every metric to `metrics.jsonl` and TensorBoard event files, and calls callbacks.

    Args:
      run_dir: the run; made if missing.
      after: the step from which a run is continued. Records of later steps are dropped, because a
        crash lost those steps and they will be run again.
      say: called with a line of text about lines that are not records; they are dropped too.
      callbacks: called in order with every record, once it is written.

    Raises:
      OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        after: int = 0,
        say: Callable[[str], None] = to_standard_error,
        callbacks: Sequence[Callback] = (),
    ):
        from tensorboardX import SummaryWriter

        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = path = folder / METRICS
        old = list(records_of(path))
        kept = [line for line, record in old if record is not None and record["step"] <= after]
        # The last line is not reported, because a killed run often leaves it cut off.
        if wrong := [i for i, (_, record) in enumerate(old[:-1], 1) if record is None]:
            say(f"{path} has {len(wrong)} lines that are no records, the first is {wrong[0]}; "
                "they are left out")  # fmt: skip
        write_whole(path, b"".join(line + b"\n" for line in kept))
        self._callbacks = tuple(callbacks)
        self._lines = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=after + 1, write_to_disk=True
        )

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """One record: `{"step": ..., "split": ..., "time": ..., name: value, ...}`."""
        record = {"step": step, "split": split, "time": round(time.time(), 3), **metrics}
        try:
            self._lines.write(json.dumps(record) + "\n")
            self._lines.flush()
        except OSError as error:
            raise OSError(f"metrics cannot be written to {self._path}: {error}") from error
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        for callback in self._callbacks:
            callback(dict(named), step)  # a copy, which it may change

    def close(self) -> None:
        """Flush and close both."""
        for stream in (self._lines, self._board):
            with contextlib.suppress(OSError):  # such as a full disk, which was reported before
                stream.close()


class NoWriter(MetricWriter):
    """A writer that writes nothing, for every process but the first."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_writer(
    run_dir: str | Path,
    after: int,
    say: Callable[[str], None],
    callbacks: Sequence[Callback] = (),
) -> MetricWriter:
    """A `MetricWriter` on the first process, a `NoWriter` on the others."""
    if not is_first():
        return NoWriter()
    return MetricWriter(run_dir, after=after, say=say, callbacks=callbacks)


class TrainingBar:
    """A progress bar with tokens/s and time left on a terminal; plain lines elsewhere.

    Args:
      total: steps of the run.
      quiet: print nothing.
    """

    def __init__(self, total: int, *, quiet: bool = False):
        self.console = console_of(sys.stdout, highlight=False, quiet=quiet)
        self._progress = Progress(
            *COLUMNS,
            TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("training", total=total, unit="steps", status="")

    def __enter__(self) -> "TrainingBar":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, steps: int) -> None:
        """Move the bar forward by this many steps."""
        self._progress.advance(self._task, steps)

    def log(
        self, step: int, metrics: dict[str, float], names: dict[str, str], *, split: str = "train"
    ) -> None:
        """Print the metrics in `names`, which maps a metric's name to its label on the line."""
        parts = [f"{label} {_number(metrics[name])}" for name, label in names.items()]
        self.print(f"{split:<8} {step:>6}  " + "  ".join(parts))
        if "tokens_per_second" in metrics:
            speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
            self._progress.update(self._task, status=speed)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
