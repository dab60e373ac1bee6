"""What a dry run says of a run: pictures, steps, batch, memory, cluster and folder."""

from dataclasses import asdict

from segtrain.cluster.capacity import Offer, needs
from segtrain.config.batch_split import split_of
from segtrain.errors import counted, gib
from segtrain.launch.workload import Size
from segtrain.memory import Plan, parameters


def plan_lines(fitted: Plan, size: Size, offer: Offer) -> list[str]:
    """What a dry run prints after the recipe."""
    recipe = fitted.recipe
    cluster, train = recipe.cluster, recipe.train
    split = split_of(recipe)
    slots = split.per_replica * split.accumulation * cluster.replicas_per_worker * cluster.max_workers
    spare = slots - train.global_batch_size
    return [
        f"pictures  {size.training_pictures} to train on, {size.validation_pictures} to validate on",
        f"steps     {size.steps_per_epoch} an epoch, {size.steps_per_epoch * train.epochs} in {train.epochs} epochs",
        f"batch     {train.global_batch_size} = {counted(cluster.max_workers, 'worker')} x "
        f"{counted(cluster.replicas_per_worker, 'replica')} x {counted(split.accumulation, 'pass', 'passes')} x "
        f"{split.per_replica} pictures{f', {spare} of them empty' if spare else ''}",
        f"data      {gib(size.training_bytes)} to read an epoch, {gib(size.validation_bytes)} to validate",
        f"network   {parameters(recipe.model):,} parameters",
        *_memory_lines(fitted),
        *size.cautions,
        f"asks for  {needs(cluster)}",
        f"cluster   {offer}",
        f"folder    {recipe.run.folder}",
    ]


def _memory_lines(fitted: Plan) -> list[str]:
    """Bytes of a step by kind, and what was changed to make it fit."""
    footprint, cluster = fitted.footprint, fitted.recipe.cluster
    kinds = ", ".join(f"{kind} {gib(count)}" for kind, count in asdict(footprint).items() if count)
    lines = [f"memory    about {gib(footprint.total)} a replica: {kinds}"]
    if cluster.device_bytes is not None:
        lines.append(f"fits      {gib(cluster.device_bytes)}: {'; '.join(fitted.reasons) or 'as asked'}")
    return lines
