"""The page of a run."""

import shlex
from collections.abc import Sequence
from typing import Any

from segtrain.dataset.mask_warnings import cautions
from segtrain.errors import gib
from segtrain.locations import without_credentials
from segtrain.report import page
from segtrain.report.charts import run_charts
from segtrain.report.embedded import panel_url
from segtrain.report.folders import Panel, RunContent
from segtrain.runs import goodput
from segtrain.runs.run_folder import RECIPE_NAME, RunFolder
from segtrain.storage.files import is_remote

LOWEST = 10
"""Pictures of the lowest dice that are named."""


def render(run: RunContent) -> str:
    """The whole page as HTML."""
    return page.render(
        "run.html",
        run_charts(run),
        {},
        title=run.recipe.run.name,
        folder=without_credentials(run.folder),
        state=_state(run),
        best=run.best,
        cards=_cards(run),
        cautions=cautions_of(run.best),
        panels=shown_panels(run.panels),
        lowest=_lowest(run.best),
        facts=_facts(run),
        attempts=goodput.rows(run.goodput),
        goodput=goodput.goodput_sentence(run.goodput),
        remote=is_remote(run.folder),
        command=command(run),
        recipe=run.recipe_text,
    )


def shown_panels(panels: Sequence[Panel]) -> list[tuple[str, str, str]]:
    """Title, caption and URL of the best, the median and the worst panel; some pictures of the fold have one.

    Panels of a run that has no record of its pictures' dice yet come as they are, three at most.
    """
    chosen = [(panel.id, panel) for panel in panels[:3]]
    known = [panel for panel in panels if panel.rank is not None]
    if known:
        last = len(known) - 1
        titles = {last // 2: "median", last: "worst", 0: "best"}
        chosen = [(title, known[place]) for place, title in sorted(titles.items())]
    return [(title, _caption(panel), url) for title, panel in chosen if (url := panel_url(panel.png))]


def _caption(panel: Panel) -> str:
    if panel.rank is None:
        return ""
    return f"{panel.id}: dice {panel.dice:.4f}, rank {panel.rank} of the fold's {panel.pictures} pictures"


def cautions_of(best: dict[str, Any]) -> list[str]:
    """Sentences about masks of the validation pictures that make the scores say little."""
    shares = best.get("validation_foreground") or []
    return cautions(shares, [best.get("fold", 0)] * len(shares), best.get("validation_ids", ()))


def command(run: RunContent) -> str:
    """What trains the same again, beside the first one."""
    path = RECIPE_NAME if is_remote(run.folder) else RunFolder(run.folder).recipe
    one_fold = ["folds=one"] if run.recipe.folds == "all" else []
    return shlex.join(["python", "jobs/train.py", path, f"run.name={run.recipe.run.name}-again", *one_fold])


def _state(run: RunContent) -> str:
    epochs = run.recipe.train.epochs
    if not run.epochs:
        steps = f"; {run.steps[-1]['step']} steps are" if run.steps else ""
        return f"no epoch of {epochs} is recorded yet{steps}"
    done = run.epochs[-1]["epoch"]
    return f"{done} epochs" if done == epochs else f"{done} of {epochs} epochs recorded"


def _cards(run: RunContent) -> list[tuple[str, str, str]]:
    """Figure, what it is, and a word on it; the first is the score."""
    best, cards = run.best, []
    if best:
        cards += [
            (f"{best['dice_hard_original']:.4f}", "hard dice", f"original size, fold {best['fold']}"),
            (f"{best['iou_hard_original']:.4f}", "IoU", "hard, mean over pictures"),
            (f"{best['dice_soft']:.4f}", "soft dice", "original size"),
            (str(best["epoch"]), "best epoch", f"of {run.epochs[-1]['epoch'] if run.epochs else best['epoch']}"),
            (page.duration(best["train_seconds"]), "training", "up to the best epoch"),
        ]
    if run.epochs:
        last = run.epochs[-1]
        wait = last["input_wait_s"] / last["epoch_s"] if last["epoch_s"] else 0.0
        cards.append((f"{last['images_per_s']:.1f}", "images/s", f"last epoch, {wait:.1%} waiting for input"))
    if run.goodput.attempts:
        many = f", {len(run.goodput.attempts)} attempts" if len(run.goodput.attempts) > 1 else ""
        cards.append((f"{run.goodput.share:.0%}", "goodput", f"of all time in steps and scores{many}"))
    return cards


def _lowest(best: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    """Id, dice and share of foreground of the pictures with the lowest dice."""
    ids, dice = best.get("validation_ids", []), best.get("validation_dice", [])
    shares = best.get("validation_foreground") or [None] * len(ids)
    return sorted(zip(ids, dice, shares, strict=True), key=lambda one: one[1])[:LOWEST]


def _facts(run: RunContent) -> list[list[tuple[str, list[tuple[str, str]]]]]:
    """Columns of groups of facts: title, and names with values."""
    versions = [("Versions", list(run.best["versions"].items()))] if run.best.get("versions") else []
    return [[("Data", _data_facts(run)), *versions], [("Training", _training_facts(run))]]


def _data_facts(run: RunContent) -> list[tuple[str, str]]:
    data, best = run.recipe.data, run.best
    shares = best.get("validation_foreground")
    read = sum(line.get("downloaded_bytes", 0) for line in run.epochs)
    lost = sum(line.get("left_out", 0) for line in run.epochs)
    facts = {
        "data set": without_credentials(str(data.root)),
        "training pictures": f"{run.epochs[-1]['samples']:,.0f} an epoch" if run.epochs else None,
        "validation pictures": f"{len(best['validation_ids']):,}" if best else None,
        "fingerprint": best["data_fingerprint"] if best else None,
        "validation fold": str(data.fold),
        "test fold": "none" if data.test_fold is None else str(data.test_fold),
        "training size": f"{data.width} x {data.height}, {data.fit}",
        "mean foreground": f"{sum(shares) / len(shares):.2%} (validation)" if shares else None,
        "read from storage": gib(read) if read else None,
        "left out as damaged": f"{lost:,} pictures, all epochs together" if lost else None,
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _training_facts(run: RunContent) -> list[tuple[str, str]]:
    recipe = run.recipe
    train, cluster = recipe.train, recipe.cluster
    kind = "GPU" if cluster.gpus_per_worker else "CPU device"
    devices = f"{cluster.replicas_per_worker} {kind}{'s' if cluster.replicas_per_worker > 1 else ''}"
    return [
        ("network", " ".join(f"{name}={value}" for name, value in recipe.model.model_dump().items())),
        ("loss", " + ".join(f"{weight:g} {name}" for name, weight in recipe.to_dict()["loss"]["terms"].items())),
        ("optimizer", f"{recipe.optimizer.kind}, learning rate {recipe.optimizer.learning_rate:g}"),
        ("schedule", recipe.schedule.kind),
        ("global batch", f"{train.global_batch_size} pictures"),
        ("workers", f"{cluster.workers}, with {devices} each"),
        ("precision", train.precision),
        ("seed", str(train.seed)),
        ("recipe", run.best.get("recipe_fingerprint", recipe.fingerprint())),
    ]
