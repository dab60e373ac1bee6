"""Look at a data set: what it holds, its statistics, or some pictures with their masks.

    python jobs/data.py inspect DATASET [key=value ...] [--debug]
    python jobs/data.py stats   DATASET
    python jobs/data.py preview DATASET [--out preview.png] [--pictures 12]

DATASET is a local folder or an s3:// URL; `storage.endpoint_url=...` reaches another S3 server.
"""

import argparse
import io
import sys
from collections.abc import Sequence

from segtrain import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("inspect", "stats", "preview"))
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--out", default="preview.png", metavar="FILE.png", help="where preview is drawn")
    parser.add_argument("--pictures", type=int, default=12, help="how many preview shows")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_intermixed_args(argv)
    return cli.main(lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.data import describe
    from segtrain.data.manifest import read_index, read_manifest
    from segtrain.storage import Storage

    storage = Storage(load_recipe(None, args.overrides).storage)
    manifest = read_manifest(storage, args.dataset)
    if args.what == "inspect":
        print("\n".join(describe.overview(manifest, args.dataset)))
        return
    index = read_index(storage, args.dataset, manifest)
    if args.what == "stats":
        print("\n".join(describe.statistics(index)))
        return
    sheet = io.BytesIO()
    describe.preview(storage, args.dataset, manifest, index, args.pictures).save(sheet, "PNG")
    storage.write_bytes(args.out, sheet.getvalue())
    print(f"drew {args.out}")


if __name__ == "__main__":
    sys.exit(main())
