"""Write one HTML page about a run or a sweep, which opens offline in any browser; also while it is still running.

    python jobs/report.py RUN_OR_SWEEP [--out FILE] [key=value ...] [--debug]

    python jobs/report.py demo/runs/quickstart
    python jobs/report.py s3://bucket/runs/sweep_carvana --out sweep.html
    python jobs/report.py s3://bucket/runs/carvana storage.endpoint_url=http://localhost:8333

RUN_OR_SWEEP is the folder <run.storage>/<run.name> of jobs/train.py or jobs/tune.py, or that of one trial; it may be an
s3:// URL, and so may FILE. The page is `report.html` in that folder where no FILE is given. Nothing outside the folder
is read; key=value are settings of the section `storage`.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN_OR_SWEEP")
    parser.add_argument("--out", metavar="FILE", help="where the page goes")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.locations import check_given
    from segtrain.report.write import write_report
    from segtrain.storage.files import Storage

    check_given({"RUN_OR_SWEEP": args.folder, "--out": args.out})
    recipe = load_recipe(None, args.overrides)
    print(f"wrote {write_report(args.folder, Storage(recipe.storage), args.out)}")


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
