"""Search the space that a recipe's `tune` section gives, a run for each point, and keep the best.

    python jobs/tune.py RECIPE.yaml [key=value ...] [--dry-run] [--resume] [--debug]

    python jobs/tune.py jobs/recipes/sweep_quick.yaml data.root=demo/data run.storage=demo/runs
    python jobs/tune.py jobs/recipes/sweep_carvana.yaml data.root=s3://bucket/carvana run.storage=s3://bucket/runs
    python jobs/tune.py jobs/recipes/sweep_quick.yaml data.root=demo/data run.storage=demo/runs --resume
    python jobs/train.py demo/runs/sweep_quick/best.yaml

The sweep's folder then holds leaderboard.csv, best.yaml, which train.py runs as it is, and report.html.
It uses the Ray cluster that RAY_ADDRESS or `ray start` names, else one of its own on this machine.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in the folder")
    again = "go on with the sweep in the folder, or begin it where there is none: for what starts jobs again by itself"
    parser.add_argument("--resume=auto", dest="resume_if_there", action="store_true", help=again)


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    from segtrain.tune import sweep  # a mistake in the recipe shows before Ray takes its seconds to import

    resume = args.resume or (args.resume_if_there and sweep.sweep_exists(recipe))
    if args.dry_run:
        print("\n".join(sweep.dry_run(recipe, resume=resume)))
    else:
        sweep.run_sweep(recipe, resume=resume)


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
