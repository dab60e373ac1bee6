"""Score a run's best model on a fold of a data set, every picture once and at its original size.

    python jobs/evaluate.py RUN DATASET [key=value ...] [--debug]

    python jobs/evaluate.py runs/quickstart demo/cars                 the run's validation fold
    python jobs/evaluate.py runs/quickstart demo/cars data.fold=3     another fold
    python jobs/evaluate.py s3://bucket/runs/carvana s3://bucket/other evaluation.threshold=0.4

RUN is a run's folder, DATASET a data set; either may be an s3:// URL. Settings are the run's own, except that one
worker without GPUs does it: `cluster.gpus_per_worker=1` and the like change that.
"""

import argparse
import sys
from collections.abc import Sequence

from segtrain import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args(argv)
    return cli.main(lambda: run(args.run, args.dataset, args.overrides), debug=args.debug)


def run(folder: str, dataset: str, overrides: Sequence[str]) -> None:
    from segtrain.preflight import recipe_to_score

    recipe = recipe_to_score(folder, dataset, overrides)
    from segtrain.launch import evaluate  # a mistake above shows before Ray takes its second to import

    for name, value in evaluate(recipe).items():
        print(f"{name:24} {value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
