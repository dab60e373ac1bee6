"""What follows when a device ran out of memory after all: half as many pictures at once."""

from segtrain.config import Recipe
from segtrain.config.batch_split import split_of
from segtrain.errors import UserError


def with_smaller_batch(recipe: Recipe, headline: str, *, scoring: bool) -> tuple[Recipe, str]:
    """The recipe with half as many pictures on a device at once, and a sentence that says so.

    `headline` says what did not fit, `scoring` whether validation pictures were being scored: then it is
    `evaluation.batch_size` that is halved. Of training the accumulation doubles, so that the global batch stays.
    Raises UserError where it was one picture already.
    """
    shortage = f"out of memory on the device ({headline})"
    if scoring:
        pictures = recipe.evaluation.batch_size
        if pictures == 1:
            raise UserError(_too_large_to_score(recipe, shortage))
        smaller = recipe.updated({"evaluation.batch_size": pictures // 2})
        return smaller, f"{shortage}; scoring with evaluation.batch_size={pictures // 2} instead of {pictures}"
    before = split_of(recipe)
    if before.per_replica == 1:
        raise UserError(_too_large_to_train(recipe, shortage))
    # Rounded up: 5 pictures become 3 and 2, in twice the passes and not in three times.
    smaller = recipe.updated({"train.per_replica_batch_size": -(-before.per_replica // 2)})
    after = split_of(smaller)
    line = (
        f"{shortage}; from now on {after.accumulation} x {after.per_replica} pictures a replica instead of "
        f"{before.accumulation} x {before.per_replica} (train.per_replica_batch_size={after.per_replica})"
    )
    if recipe.model.kind == "unet" and recipe.model.norm in ("batch", "synchronized"):
        line += ", and batch norm averages over fewer"
    return smaller, line


def _too_large_to_train(recipe: Recipe, shortage: str) -> str:
    data = recipe.data
    fixes = [] if recipe.train.rematerialize else ["train.rematerialize=true"]
    crops = "data.fit=crop with " if data.fit == "resize" else ""
    fixes.append(f"{crops}a smaller data.height and data.width")
    return (
        f"{shortage} with one picture of {data.height} x {data.width} (data.height x data.width) at a time; "
        f"set {', or '.join(fixes)}"
    )


def _too_large_to_score(recipe: Recipe, shortage: str) -> str:
    data = recipe.data
    size = f"of {data.height} x {data.width} " if data.fit == "resize" else "at its own size "
    return (
        f"{shortage} while one picture {size}was scored at a time (evaluation.batch_size=1); "
        f"set a smaller model.filters or train.precision=mixed_bfloat16, or take a device with more memory"
    )
