"""Write a run's best network as a SavedModel, for TensorFlow without segtrain, or as a `.keras` file.

    python jobs/export.py RUN DEST [key=value ...] [--debug]

    python jobs/export.py runs/quickstart exported/quickstart               a SavedModel's folder
    python jobs/export.py runs/quickstart exported/quickstart/model.keras   a .keras file
    python jobs/export.py s3://bucket/runs/carvana s3://bucket/models/carvana

RUN is a run's folder or a `.keras` file; RUN and DEST are local or s3:// URLs, and `storage.endpoint_url=...` reaches
another S3 server. `metrics.json`, which says at what size and threshold the network is best used, goes into the folder,
or beside the file. Nothing is written over.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("destination", metavar="DEST")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.locations import check_given

    check_given({"RUN": args.run, "DEST": args.destination})
    recipe = load_recipe(None, args.overrides)
    from segtrain.process import before_tensorflow, quiet_tensorflow_import

    before_tensorflow()
    with quiet_tensorflow_import():
        from segtrain.inference.export import export  # a mistake in a setting shows before these seconds
    from segtrain.storage.files import Storage

    export(args.run, args.destination, Storage(recipe.storage))
    print(f"wrote {args.destination}")


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
