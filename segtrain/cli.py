"""What every job does around its one library call: plain messages for known failures, exit codes, logging."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segtrain.environment import check_temporary_folder, keras_as_the_recipe_says
from segtrain.errors import DataError, RunError, StorageError, UserError

USER_ERROR = 2
FAILURE = 1
INTERRUPTED = 130


def main(run: Callable[[], None], *, debug: bool = False) -> int:
    """Call `run` and return the job's exit code.

    0 when it returns; 2 with one message on stderr for a `UserError`; 1 with one message for a fault of storage, a
    file that is gone, damaged data, or workers lost too often; 130 on Ctrl-C and SIGTERM. `debug` shows the traceback
    too. Any other exception is a bug and passes through with its traceback. Log lines go to stdout, so that stderr
    holds the one message alone.
    """
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
        return INTERRUPTED
    except BrokenPipeError:
        # `| head` closed stdout; point it at nothing so that the interpreter's last flush does not fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    return 0


@contextmanager
def _log_to_stdout() -> Iterator[None]:
    """Show the library's log lines, from INFO on, as plain lines while the block runs."""
    logger = logging.getLogger("segtrain")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, handlers, propagate = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.INFO)
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


def _fail(error: Exception | str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return code
