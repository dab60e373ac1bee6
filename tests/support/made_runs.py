"""Folders of runs and sweeps as training leaves them, made without training, and Chromium to open a page with."""

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

from segtrain.config import Recipe
from segtrain.panels import panel
from segtrain.runs.goodput import Attempt, Goodput
from segtrain.runs.status import Account
from segtrain.runs.trials import ScoredEpoch, Sweep, Trial, trial_folder, write_sweep, write_trial
from segtrain.storage.files import Storage

STEPS_PER_EPOCH = 5
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SPACE: dict[str, Any] = {
    "model.filters": {"choice": [8, 16, 32, 64]},
    "model.depth": {"choice": [3, 4, 5]},
    "data.height,data.width": {"choice": [[96, 144], [192, 288], [384, 576]]},
    "loss.terms": {"choice": [{"dice": 1.0}, {"bce": 1.0}, {"dice": 1.0, "bce": 1.0}]},
    "loss.dice_smooth": {"uniform": [0.1, 2.0], "when": {"loss.terms": [{"dice": 1.0}, {"dice": 1.0, "bce": 1.0}]}},
    "optimizer.learning_rate": {"loguniform": [1e-4, 1e-2]},
}

MARKUP = "</script><script>document.title = 'x'</script><img src=x onerror=\"document.title='x'\"><b>"
HOSTILE = Trial(20, {"model.filters": 8, "model.kind": MARKUP}, "failed", MARKUP, (ScoredEpoch(1, 0.5, 1.0, 9.0),))
"""A trial whose texts would be markup in a page that does not escape them."""


def draw_panel(seed: int, *, off_by: int = 2, size: tuple[int, int] = (60, 90), title: str = "picture") -> bytes:
    """PNG of a panel with an ellipse in noise, predicted `off_by` pixels too far to the right."""
    height, width = size
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]

    def ellipse(shift: int) -> np.ndarray:
        return ((x - width / 2 - shift) / (width / 3)) ** 2 + ((y - height / 2) / (height / 3)) ** 2 < 1

    truth = ellipse(0)
    image = random.integers(60, 120, (height, width, 3)).astype(np.uint8)
    image[truth] += 90
    buffer = io.BytesIO()
    panel(image, truth, ellipse(off_by).astype(np.float32), title=title).save(buffer, "PNG")
    return buffer.getvalue()


def write_run(
    folder: Path, *settings: str, epochs: int = 4, pictures: int = 12, panels: int = 4, recipe: Recipe | None = None
) -> None:
    """The folder of a run that has trained for `epochs`; pictures `p000`, `p001`, ... have more dice each."""
    tree = (recipe or Recipe()).to_dict()
    tree["run"] |= {"storage": str(folder.parent), "name": folder.name}
    tree["data"]["root"] = "/data/cars"
    tree["train"]["epochs"] = max(epochs, 1)
    made = Recipe.from_dict(tree)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(made.to_yaml())
    if not epochs:
        return
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _lines(epochs)))
    account = Account(0, 7, 4, starting_s=17.0, steps_s=48.0, input_wait_s=6.0, checkpoint_s=1.0, evaluation_s=12.0)
    killed = Attempt(**vars(account), began_at=1.0, workers=2, seconds=95.0, waiting_s=8.0, end="worker 1 lost")
    record = Goodput((killed,)).begun(replace(killed, first_step=4, step=20, steps_s=60.0, seconds=110.0, end="done"))
    (folder / "goodput.json").write_bytes(record.updated(record.attempts[-1]).to_json())
    ids = [f"p{number:03d}" for number in range(pictures)]
    dice = [round(0.98 - 0.3 * exp(-k / 3), 6) for k in range(pictures)]
    (folder / "best").mkdir(exist_ok=True)
    (folder / "best/metrics.json").write_text(json.dumps(_best(ids, dice, epochs)))
    (folder / "panels").mkdir(exist_ok=True)
    for k in range(panels):
        name = ids[k * (pictures - 1) // max(1, panels - 1)]
        (folder / f"panels/{name}.png").write_bytes(draw_panel(k, title=name))


def _lines(epochs: int) -> Iterator[dict[str, Any]]:
    for step in range(1, epochs * STEPS_PER_EPOCH + 1):
        at = step / STEPS_PER_EPOCH
        yield {"kind": "step", "step": step, "loss": exp(-at / 3), "dice": 1 - exp(-at / 2), "learning_rate": 1e-3 / at}
        if step % STEPS_PER_EPOCH == 0:
            times = {"images_per_s": 20.0, "epoch_s": 2.0, "input_wait_s": 0.25, "compute_s": 1.75}
            scores = {"loss": exp(-at / 3), "dice_training": 0.9 - exp(-at), "dice_hard_original": 0.95 - exp(-at)}
            yield {"kind": "epoch", "step": step, "epoch": int(at), "samples": 40.0, "left_out": 0, **times, **scores}


def _best(ids: list[str], dice: list[float], epochs: int) -> dict[str, Any]:
    mean = sum(dice) / len(dice)
    return {
        "dice_hard_original": mean,
        "dice_soft": mean - 0.01,
        "iou_hard_original": mean - 0.05,
        "epoch": epochs,
        "train_seconds": 130.4,
        "best_threshold": 0.4,
        "dice_at_best_threshold": mean + 0.001,
        "fold": 0,
        "recipe_fingerprint": "0123456789abcdef",
        "data_fingerprint": "fedcba9876543210",
        "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "validation_ids": ids,
        "validation_dice": dice,
        "validation_foreground": [0.05 + 0.5 * k / len(ids) for k in range(len(ids))],
        "threshold_curve": {"thresholds": [0.2, 0.4, 0.6], "dice": [mean - 0.1, mean + 0.001, mean - 0.02]},
    }


def make_trials(count: int, *, epochs: int = 9, seed: int = 0) -> list[Trial]:
    """Trials over `SPACE`; each ninth from the fourth on failed, each ninth from the sixth on infeasible."""
    random = np.random.default_rng(seed)
    return [_trial(number, epochs, random) for number in range(count)]


def _trial(number: int, epochs: int, random: np.random.Generator) -> Trial:
    def pick(axis: str) -> Any:
        return SPACE[axis]["choice"][random.integers(len(SPACE[axis]["choice"]))]

    point = {axis: pick(axis) for axis in list(SPACE)[:4]}
    if "dice" in point["loss.terms"]:
        point["loss.dice_smooth"] = float(random.uniform(0.1, 2.0))
    rate = point["optimizer.learning_rate"] = float(10 ** random.uniform(-4, -2))
    if number % 9 == 5:
        reason = "a step takes about 17.20 GiB a replica, more than nine tenths of cluster.device_bytes (16.00 GiB)"
        return Trial(number, point, "infeasible", reason, memory_bytes=18468609434)
    filters, height = point["model.filters"], point["data.height,data.width"][0]
    reach = 0.9 + 0.02 * np.log2(filters / 8) + 0.008 * np.log2(height / 96) - 0.05 * abs(np.log10(rate) + 2.8)
    reach += float(random.normal(0, 0.006))
    stop_at = epochs if number % 4 == 0 else int(random.choice([1, 3]))
    cost = filters * height**2 / 3e5
    history = tuple(
        ScoredEpoch(epoch, float(reach * (1 - 0.7 * exp(-epoch))), float(cost * epoch), float(400 / cost))
        for epoch in range(1, stop_at + 1)
    )
    trial = Trial(number, point, "finished", "", history, filters**2 * 7700, int(cost * 2e7), attempts=1)
    if number % 9 == 3:
        return Trial(number, point, "failed", "worker 0 was killed <SIGKILL>, twice", history[:1], attempts=2)
    if stop_at < epochs:
        return trial.ended("stopped", f"not among the best third after epoch {stop_at}")
    return trial


def write_made_sweep(folder: Path, trials: list[Trial], *, state: Any = "finished", panels: int = 2) -> None:
    """The folder of a sweep with these trials; every trial that has a dice has the folder of a run."""
    tree = Recipe().to_dict()
    tree["run"] |= {"storage": str(folder.parent), "name": folder.name}
    tree["train"]["epochs"] = 9
    tree["tune"]["space"] = SPACE
    recipe = Recipe.from_dict(tree)
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    storage = Storage()
    for trial in trials:
        write_trial(str(folder), trial, storage)
        if trial.history:
            write_run(Path(trial_folder(str(folder), trial.number)), epochs=trial.epochs, panels=panels, recipe=recipe)
    (folder / "best.yaml").write_text(recipe.to_yaml())
    write_sweep(str(folder), Sweep(state, "", 1234.5), storage)


@dataclass
class Seen:
    """What a page did while it was open."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """URLs that were asked for, but for those with their content in them."""
    problems: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window, with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="segtrain-chromium-") as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False, env={"HOME": home}
        )
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, path: Path, *, width: int = 1200, height: int = 900, touch: bool = False) -> Seen:
    """Open a file in a page of its own and wait until its charts are drawn."""
    page = browser.new_page(viewport={"width": width, "height": height}, has_touch=touch, is_mobile=touch)
    return watch(page, path)


def watch(page: Page, path: Path) -> Seen:
    """Open a file in a page that is there, and wait until its charts are drawn."""
    seen = Seen(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.problems.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=60_000, state="attached")
    seen.requests = [url for url in seen.requests if not url.startswith(("data:", "blob:"))]
    return seen
