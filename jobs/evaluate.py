"""Score trained networks on a fold of a data set, every picture once and at its own size.

    python jobs/evaluate.py RUN DATASET [key=value ...] [--out DIR] [--debug]

    python jobs/evaluate.py runs/quickstart demo/cars                 the run's validation fold
    python jobs/evaluate.py runs/quickstart demo/cars data.fold=3     another fold
    python jobs/evaluate.py s3://bucket/runs/carvana s3://bucket/other inference.threshold=0.4 inference.flip=true
    python jobs/evaluate.py runs/a,runs/b demo/cars --out scores cluster.gpus_per_worker=1

RUN is a run's folder, one of several folds, a .keras file or a SavedModel, or several of these joined by commas, which
are averaged; DATASET a data set. A SavedModel is a program that may do whatever you may, so it is loaded only where you
type inference.trust_saved_model=true. Each may be an s3:// URL. The scores of each picture, a summary and panels of the
worst go into DIR, `RUN/evaluation/<data set>-fold-<fold>` where none is given. Settings are the run's own, but for the
cluster's: a process a CPU scores, or a GPU with `cluster.gpus_per_worker=1`.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--out", metavar="DIR", help="where the scores go")


def run(args: argparse.Namespace) -> None:
    from segtrain.locations import check_given
    from segtrain.runs.networks import recipe_to_score

    check_given({"RUN": args.run, "DATASET": args.dataset, "--out": args.out})
    recipe = recipe_to_score(args.run, args.dataset, args.overrides)
    from segtrain.scoring.evaluate_run import evaluate  # a mistake above shows before Ray takes its second to import

    for name, value in evaluate(recipe, args.run, args.out).items():
        print(f"{name:24} {value:.6g}")


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
