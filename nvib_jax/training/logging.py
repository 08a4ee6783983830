"""Where metrics go: JSON lines, TensorBoard files, and one line on the terminal."""

import contextlib
import json
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.progress import Progress, TextColumn

from nvib_jax.progress import COLUMNS, console_of
from nvib_jax.training.distributed import is_first


class MetricWriter:
    """Appends every metric to `metrics.jsonl` and to TensorBoard event files.

    Args:
      run_dir: the run; made if missing.
      after: the step that is continued. Records beyond it are of steps that were lost with a
        crash and will be run again: they are dropped.
    """

    def __init__(self, run_dir: str | Path, *, after: int = 0):
        from tensorboardX import SummaryWriter

        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = path = folder / "metrics.jsonl"
        old = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        draft = path.with_suffix(".part")
        draft.write_text("".join(r for r in old if _step(r) <= after), encoding="utf-8")
        draft.replace(path)
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
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        for stream in (self._lines, self._board):
            with contextlib.suppress(OSError):  # a full disk: the run has said so already
                stream.close()


class NoWriter(MetricWriter):
    """Writes nothing: what every process but the first has."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open_writer(run_dir: str | Path, after: int) -> MetricWriter:
    """A `MetricWriter` on the first process, one that writes nothing on the others."""
    return MetricWriter(run_dir, after=after) if is_first() else NoWriter()


def to_standard_error(text: str) -> None:
    """A line for a person, beside whatever is on standard output."""
    print(text, file=sys.stderr, flush=True)


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
        """So many steps done."""
        self._progress.advance(self._task, steps)

    def log(
        self, step: int, metrics: dict[str, float], names: dict[str, str], *, split: str = "train"
    ) -> None:
        """Print the metrics called in `names` (metric -> how a person reads it)."""
        parts = [f"{label} {_number(metrics[name])}" for name, label in names.items()]
        self.print(f"{split:<8} {step:>6}  " + "  ".join(parts))
        if "tokens_per_second" in metrics:
            speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
            self._progress.update(self._task, status=speed)

    def print(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, markup=False, soft_wrap=True)


def _step(record: str) -> float:
    try:
        return json.loads(record)["step"]
    except ValueError:  # cut off in the middle
        return float("inf")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
