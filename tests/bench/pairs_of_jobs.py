"""How often two jobs that meet in one folder end right: every pair, many times, started up to two seconds apart.

    python -m tests.bench.pairs_of_jobs [--rounds 20] [--only NAME ...]

Takes some seven minutes a round on two quiet cores. Prints a line a pair, and the first line of what went wrong.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tests.support.pairs_of_jobs import PAIRS, apart_s, lay_out, meet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=list(PAIRS), default=list(PAIRS))
    args = parser.parse_args()
    for name in args.only:
        began, right = time.monotonic(), 0
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory(prefix="pairs-", ignore_cleanup_errors=True) as folder:
                try:
                    meet(PAIRS[name], lay_out(Path(folder)), apart_s())
                    right += 1
                except AssertionError as error:
                    print(f"  {name}: {str(error)[:2000]}")
        print(
            f"{name:24} right {right} of {args.rounds}, {(time.monotonic() - began) / args.rounds:.0f} s a round",
            flush=True,
        )


if __name__ == "__main__":
    main()
