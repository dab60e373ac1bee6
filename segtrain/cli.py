"""What every job does around its one library call: arguments, plain messages for failures, exit codes, logging."""

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from segtrain.cluster.stop_signal import SIGNALS, signals_handled
from segtrain.errors import DataError, RunError, StorageError, UserError
from segtrain.process import check_temporary_folder, keras_as_the_recipe_says

USER_ERROR = 2
FAILURE = 1
OF_A_SIGNAL = 128
"""Added to a signal's number, as shells do."""
SENT_AGAIN_AFTER_S = 0.05


def job(
    manual: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
) -> Callable[..., int]:
    """The `main` of a script: parses a command line, by default the process's own, and calls `run` as `main` does.

    `manual` is shown by `--help`. Every job takes `--debug` and, after its own positional arguments, any number of
    settings, which `run` finds as `overrides`.
    """

    def main_of_job(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
        add_arguments(parser)
        parser.add_argument("overrides", metavar="key=value", nargs="*")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        args = parser.parse_intermixed_args(argv)
        return main(lambda: run(args), debug=args.debug)

    return main_of_job


def main(run: Callable[[], None], *, debug: bool = False) -> int:
    """Call `run` and return the job's exit code.

    - 0: it returned.
    - 1, with one message on stderr: a fault of storage, a file that is gone, damaged data, or workers lost too often.
    - 2, with one message: a `UserError`.
    - 130 on Ctrl-C, 143 on SIGTERM and 129 on SIGHUP, with one message, after `with` and `finally` have tidied up.

    `debug` shows the traceback too. Any other exception is a bug and passes through with its traceback. Log lines go to
    stdout, so that stderr holds the one message alone.
    """
    with _signals() as first_signal:
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
            return OF_A_SIGNAL + (first_signal() or signal.SIGINT)
        except BrokenPipeError:
            # `| head` closed stdout; point it at nothing so that the interpreter's last flush does not fail as well.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILURE
        return 0


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    """Inside the block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, unless Ray or a run takes them over.

    Yields a function that says which of them came first, whoever has handled it: Python notes the number of every
    signal in the pipe. Signals come to a process's main thread; in any other one this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    noted_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        with signals_handled(_interrupt, (signal.SIGTERM, signal.SIGHUP)), _none_is_lost():
            yield lambda: _first_of(reader)
    finally:
        signal.set_wakeup_fd(noted_before)
        os.close(reader)
        os.close(writer)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _none_is_lost() -> Iterator[None]:
    """A signal whose exception Python ignores comes again inside the block, a moment later.

    A handler runs wherever the main thread is. In a `__del__`, or in a callback of `fork` (as often in `ray.init`),
    what it raises goes to `sys.unraisablehook`, and the job would go on.
    """
    process, before = os.getpid(), sys.unraisablehook

    def again(unraisable: "sys.UnraisableHookArgs") -> None:
        ends = issubclass(unraisable.exc_type, KeyboardInterrupt | SystemExit)
        if not ends or os.getpid() != process or threading.current_thread() is not threading.main_thread():
            before(unraisable)
            return
        signal.signal(signal.SIGTERM, _interrupt)  # Ray's own handler does nothing the second time
        timer = threading.Timer(SENT_AGAIN_AFTER_S, os.kill, (process, signal.SIGTERM))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _first_of(reader: int) -> int | None:
    try:
        numbers = os.read(reader, 64)
    except BlockingIOError:
        return None
    return next((number for number in numbers if number in SIGNALS), None)


@contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Show the library's log lines, from INFO on, as plain lines while the block runs."""
    logger = logging.getLogger("segtrain")
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [_Lines(sys.stdout)], False
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
