"""Train a network as a recipe says; started again after a kill, it goes on from the newest checkpoint.

    python jobs/train.py RECIPE.yaml [key=value ...] [--dry-run] [--extend] [--debug]

    python jobs/train.py jobs/recipes/quickstart.yaml data.root=demo/cars
    python jobs/train.py jobs/recipes/carvana.yaml data.root=s3://bucket/carvana cluster.gpus_per_worker=4
    python jobs/train.py jobs/recipes/quickstart.yaml data.root=demo/cars train.epochs=20 --extend
    python jobs/train.py jobs/recipes/quickstart.yaml data.root=demo/cars folds=all

With folds=all it trains one run for each fold but data.test_fold, and writes the ensemble.json that predict.py and
evaluate.py take.
It uses the Ray cluster that RAY_ADDRESS or `ray start` names, else one of its own on this machine.
"""

import argparse
import sys
from pathlib import Path

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.add_argument("--extend", action="store_true", help="let train.epochs grow over what the run was trained for")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from segtrain.launch import train_folds, train_run, upload_size

    every_fold = recipe.folds == "all"
    if args.dry_run:
        if Path("jobs/train.py").exists():  # in the folder that `ray job submit --working-dir .` would send
            print("\n".join(upload_size.describe(".")))
        print("\n".join((train_folds if every_fold else train_run).dry_run(recipe, extend=args.extend)))
    elif every_fold:
        train_folds.train_folds(recipe, extend=args.extend)
    else:
        train_run.launch(recipe, extend=args.extend)


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
