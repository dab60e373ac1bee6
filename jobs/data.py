"""Look at a data set (contents, soundness, statistics, some pictures with their masks), or remove its old versions.

    python jobs/data.py inspect DATASET [key=value ...] [--debug]
    python jobs/data.py verify  DATASET
    python jobs/data.py stats   DATASET
    python jobs/data.py preview DATASET [--out preview.png] [--pictures 12]
    python jobs/data.py prune   DATASET

DATASET is a local folder or an s3:// URL; `storage.endpoint_url=...` reaches another S3 server. `verify` reads every
byte, compares every checksum and decodes every pair; it lists all that is wrong and ends with code 1 if anything is.
`inspect` and `stats` read no shard. `data.version=FINGERPRINT` looks at an earlier version that `inspect` lists.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("inspect", "verify", "stats", "preview", "prune"))
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--out", default="preview.png", metavar="FILE.png", help="where preview is drawn")
    parser.add_argument("--pictures", type=int, default=12, help="how many preview shows")


def run(args: argparse.Namespace) -> None:
    from segtrain.config import load_recipe
    from segtrain.dataset import describe
    from segtrain.dataset.manifest import read_index, read_manifest
    from segtrain.dataset.verify import verify
    from segtrain.dataset.versions import prune, replaced_versions
    from segtrain.errors import DataError
    from segtrain.locations import check_given
    from segtrain.storage.files import Storage

    check_given({"DATASET": args.dataset, "--out": args.out})
    recipe = load_recipe(None, args.overrides)
    storage = Storage(recipe.storage)
    if args.what == "prune":
        print("\n".join(prune(storage, args.dataset)))
        return
    manifest = read_manifest(storage, args.dataset, recipe.data.version)
    if args.what == "inspect":
        versions = [version.manifest for version in replaced_versions(storage, args.dataset)]
        print("\n".join(describe.overview(manifest, args.dataset, versions)))
    elif args.what == "stats":
        print("\n".join(describe.statistics(read_index(storage, args.dataset, manifest))))
    elif args.what == "preview":
        describe.write_preview(storage, args.dataset, manifest, args.pictures, args.out)
        print(f"drew {args.out}")
    elif problems := verify(
        storage, args.dataset, manifest, recipe.run.progress_every_s, most_pixels=recipe.prepare.max_pixels
    ):
        print("\n".join(map(str, problems)))
        raise DataError(f"{args.dataset} is damaged (lines above: {len(problems)}); make it again with jobs/prepare.py")
    else:
        print(f"{manifest.pictures} pictures in {len(manifest.shards)} shards: all right")


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
