"""Measure how fast a recipe's step, input and whole loop are on your own cluster, before you train it.

    python jobs/bench.py RECIPE.yaml [key=value ...] [--steps N] [--json] [--debug]

    python jobs/bench.py jobs/recipes/quickstart.yaml data.root=demo/cars
    python jobs/bench.py jobs/recipes/carvana.yaml data.root=s3://bucket/carvana cluster.gpus_per_worker=4 --json

It starts the workers of jobs/train.py, trains --steps steps in a folder that it removes again, takes the step alone on
one batch, then the input alone. The slower of the two bounds the loop: where that is the input, more workers, cores a
worker or a node cache help; where it is the step, GPUs, mixed precision or a smaller network.
It uses the Ray cluster that RAY_ADDRESS or `ray start` names, else one of its own on this machine.
"""

import argparse
import json
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml")
    parser.add_argument("--steps", type=int, default=50, help="steps to take for each figure (default: 50)")
    parser.add_argument("--json", action="store_true", help="end with the figures as one line of JSON")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.errors import UserError

    if args.steps < 1:
        raise UserError(f"--steps: {args.steps}; it has to be 1 or more")
    recipe = load_recipe(args.recipe, args.overrides)
    from segtrain.launch.bench_run import bench

    measured = bench(recipe, steps=args.steps)
    print("\n".join(measured.lines()))
    if args.json:
        print(json.dumps(measured.values()))


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
