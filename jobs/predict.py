r"""Write the masks of a data set's or a folder's pictures with a trained network, and the file for Kaggle.

    python jobs/predict.py RUN DATASET_OR_FOLDER DEST [key=value ...] [--submission SAMPLE.csv [--submit]] [--debug]

    python jobs/predict.py runs/quickstart demo/cars demo/masks
    python jobs/predict.py runs/quickstart photos masks inference.overlays=true inference.skip_unreadable=true
    python jobs/predict.py s3://bucket/runs/carvana s3://bucket/test s3://bucket/masks \
        cluster.gpus_per_worker=1 inference.flip=true --submission sample_submission.csv --submit

RUN is a run's folder, one of several folds, a .keras file or a SavedModel, or several of these joined by commas, which
are averaged. A SavedModel is a program that may do whatever you may, so it is loaded only where you type
inference.trust_saved_model=true. Each may be an s3:// URL, as may the pictures and DEST. DEST gets `masks/ID.png` (1
bit a pixel), run lengths in `parts/`, and what else is asked for. After a kill the same command goes on where it was,
and given new or changed pictures it predicts these. Settings are the run's own, but for the cluster's: a process a CPU
predicts, or a GPU with `cluster.gpus_per_worker=1`.
"""

import argparse
import sys

from segtrain import cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("target", metavar="DATASET_OR_FOLDER")
    parser.add_argument("dest", metavar="DEST")
    parser.add_argument("--submission", metavar="SAMPLE.csv", help="write DEST/submission.csv with the sample's ids")
    parser.add_argument("--submit", action="store_true", help="send it to Kaggle and print the score")


def run(args: argparse.Namespace) -> None:
    from segtrain.locations import check_given
    from segtrain.runs.networks import recipe_to_score

    check_given({"RUN": args.run, "DATASET_OR_FOLDER": args.target, "DEST": args.dest, "SAMPLE.csv": args.submission})
    recipe = recipe_to_score(args.run, args.target, args.overrides)
    from segtrain.prediction.predict_masks import (  # a mistake above shows before Ray takes its second to import
        predict,
        prediction_lines,
    )

    made = predict(recipe, args.run, args.target, args.dest, sample=args.submission, to_kaggle=args.submit)
    print("\n".join(prediction_lines(made)))


main = cli.job(__doc__, add_arguments, run)

if __name__ == "__main__":
    sys.exit(main())
