"""Maps a function over many items in several processes, with the results in the items' order.

The processes are plain children, connected by pipes. `multiprocessing` is not used, because it
would either fork, which deadlocks once JAX has threads, or run the caller's script again in each
child, which fails for a script without `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

_MOST = 16
_LAST_WORDS = 5.0  # seconds from the end of a process's answers to its own
# The package's __init__ imports JAX, which takes seconds and 100 MB and is useless to a worker. So
# a worker puts an empty package with the same submodules in its place.
_PROGRAM = """
import sys, types
package = types.ModuleType("nvib_jax")
package.__path__ = [sys.argv[1]]
sys.modules["nvib_jax"] = package
from nvib_jax.data.workers import serve
serve()
"""


def usable_cores() -> int:
    """Cores that this process may run on, 16 at most."""
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


def ordered_map(function: Callable[[S], T], items: Iterable[S], *, workers: int = 1) -> Iterator[T]:
    """The function of each item, in order.

    Args:
      function: a function of `nvib_jax.data`, or a `partial` of one, because it is pickled.
      items: read as they are needed, about two ahead for each worker.
      workers: number of processes; 1 means this process.

    Raises:
      ChildProcessError: a worker ended, perhaps because it was killed for its memory.
      Exception: any exception of the function.
    """
    if workers == 1:
        yield from map(function, items)
        return
    free: SimpleQueue[_Worker] = SimpleQueue()
    crew: list[_Worker] = []

    def call(item: S) -> T:
        worker = free.get()
        try:
            return worker(item)
        finally:
            free.put(worker)

    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for _ in range(workers):
            crew.append(_Worker())
            crew[-1].start(function)
            free.put(crew[-1])
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.kill()
        pool.shutdown()  # waits for running calls, which fail because their workers are killed
        for worker in crew:
            worker.close()


class _Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[1])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def start(self, function: Callable[[Any], Any]) -> None:
        """Says what it is to do."""
        with self._alive():
            self._send(function)

    def __call__(self, item: Any) -> Any:
        with self._alive():
            self._send(item)
            ok, result = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        if not ok:
            raise result
        return result

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it is ending, just now
                self._process.wait(_LAST_WORDS)
            raise ChildProcessError(
                f"a process that prepares data ended with status {self._process.poll()}"
            ) from error

    def _send(self, item: Any) -> None:
        assert self._process.stdin is not None
        pickle.dump(item, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Close the pipes of an ended process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # unsent data cannot be flushed any more
                pipe.close()


def serve() -> None:
    """A worker's main loop. It ends when its input ends, as when the parent process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends the workers
    received, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, because answers go through stdout
    try:
        function = pickle.load(received)
        while True:
            item = pickle.load(received)
            answers.write(_answer(function, item))
            answers.flush()
    except (EOFError, BrokenPipeError):
        return


def _answer(function: Callable[[Any], Any], item: Any) -> bytes:
    """(True, the result) or (False, the error), pickled so that it can be read again."""
    try:
        return pickle.dumps((True, function(item)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        try:
            answer = pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)
            pickle.loads(answer)  # an error whose __init__ wants more than its message cannot be
        except Exception:
            return pickle.dumps((False, RuntimeError(repr(error))), pickle.HIGHEST_PROTOCOL)
        return answer
