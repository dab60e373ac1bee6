"""Make a data set: pictures and masks in, checked shards and a manifest out.

    python jobs/prepare.py SOURCE DEST [key=value ...] [--debug]

    python jobs/prepare.py synthetic demo/cars source.cars=16
    python jobs/prepare.py carvana s3://bucket/carvana source.path=/data/carvana
    python jobs/prepare.py kaggle s3://bucket/carvana source.path=/data/carvana
    python jobs/prepare.py folder data/nuclei source.path=/data/nuclei prepare.folds=5
    python jobs/prepare.py jobs/recipes/nuclei.yaml data/nuclei

SOURCE is a kind of source or a recipe file; DEST a local folder or an s3:// URL. After a kill the same command goes
on where it was. Give an existing data set as DEST to add pictures: those that are there keep their groups and folds, a
changed one is replaced, and what the source does not have stays, unless prepare.remove=true.
"""

import argparse
import shlex
import sys

from segtrain import cli

KINDS = ("carvana", "folder", "kaggle", "synthetic")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=f"{', '.join(KINDS)}, or a recipe file")
    parser.add_argument("dest", metavar="DEST")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.dataset.describe import overview
    from segtrain.errors import UserError
    from segtrain.locations import check_given
    from segtrain.prepare.prepare_set import prepare

    source, dest, overrides = args.source, args.dest, args.overrides
    check_given({"DEST": dest})
    if source in KINDS:
        other = [text for text in overrides if text.startswith("source.kind=") and text != f"source.kind={source}"]
        if other:
            raise UserError(f"SOURCE is {source}, and {other[-1]} says otherwise; leave one of them out")
        recipe = load_recipe(None, [f"source.kind={source}", *overrides])
    elif source.endswith((".yaml", ".yml")):
        recipe = load_recipe(source, overrides)
    else:
        raise UserError(f"SOURCE '{source}' is none of {', '.join(KINDS)} and no recipe file (.yaml); give one of them")
    print("\n".join(overview(prepare(recipe, dest), dest)))
    print(f"look at it: python jobs/data.py preview {shlex.quote(dest)}")


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
