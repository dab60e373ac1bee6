"""What every job does around its one library call: plain messages for known failures, exit codes, logging."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from segtrain.environment import check_temporary_folder, keras_as_the_recipe_says
from segtrain.errors import DataError, RunError, StorageError, UserError

USER_ERROR = 2
FAILURE = 1
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def main(run: Callable[[], None], *, debug: bool = False) -> int:
    """Call `run` and return the job's exit code.

    0 when it returns; 2 with one message on stderr for a `UserError`; 1 with one message for a fault of storage, a
    file that is gone, damaged data, or workers lost too often; with one message 130 on Ctrl-C and 143 on SIGTERM,
    after everything that `with` and `finally` tidy up. `debug` shows the traceback too. Any other exception is a bug
    and passes through with its traceback. Log lines go to stdout, so that stderr holds the one message alone.
    """
    with _signals() as first_signal:
        return _run(run, first_signal, debug)


def _run(run: Callable[[], None], first_signal: Callable[[], int | None], debug: bool) -> int:
    try:
        with _log_to_stdout():
            check_temporary_folder()
            keras_as_the_recipe_says()
            run()
            sys.stdout.flush()
    except UserError as error:
        return _fail(error, USER_ERROR, debug)
    except (StorageError, DataError, RunError) as error:
        return _fail(error, FAILURE, debug)
    except FileNotFoundError as error:
        return _fail(f"{error.filename} is not there", FAILURE, debug)
    except (KeyboardInterrupt, SystemExit):  # by which Ray ends a driver that gets SIGTERM
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return TERMINATED if first_signal() == signal.SIGTERM else INTERRUPTED
    except BrokenPipeError:
        # `| head` closed stdout; point it at nothing so that the interpreter's last flush does not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    return 0


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGTERM raises KeyboardInterrupt, as Ctrl-C does, unless Ray or a run takes it over.

    Yields a function that says which of the two came first, whoever has handled it: Python notes the number of every
    signal in the pipe. Signals come to a process's main thread; in any other one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    noted_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handled_before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield lambda: _first_of(reader)
    finally:
        signal.signal(signal.SIGTERM, handled_before)
        signal.set_wakeup_fd(noted_before)
        os.close(reader)
        os.close(writer)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _first_of(reader: int) -> int | None:
    try:
        numbers = os.read(reader, 64)
    except BlockingIOError:
        return None
    return next((number for number in numbers if number in (signal.SIGINT, signal.SIGTERM)), None)


@contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Show the library's log lines, from INFO on, as plain lines while the block runs."""
    logger = logging.getLogger("segtrain")
    handler = _Lines(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


class _Lines(logging.StreamHandler[TextIO]):
    """Drops lines that nobody reads any more (`| head`), where the work goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is logging's
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handleError(record)


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return code
