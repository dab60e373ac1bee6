"""A recipe with a search space becomes trials on Ray Tune, and ends with a leaderboard, a recipe and a report."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

from ray import tune

from segtrain.cluster import nodes
from segtrain.cluster.capacity import needs
from segtrain.cluster.stop_signal import signals_handled
from segtrain.config import Recipe, flatten, identity_differences, load_recipe
from segtrain.dataset.data_set import read_data_set
from segtrain.errors import RunError, UserError, shown
from segtrain.launch.data_version import Pinned, pinned
from segtrain.launch.earlier_run import as_it_began
from segtrain.launch.preflight import absolute, check_cluster
from segtrain.launch.train_run import train_with_tensorflow
from segtrain.launch.train_worker import Train
from segtrain.launch.workload import fit_devices, workload_of
from segtrain.memory import parameters
from segtrain.process import environment
from segtrain.report.write import write_report
from segtrain.runs import leaderboard
from segtrain.runs.leaderboard import BEST_NAME, LEADERBOARD_NAME
from segtrain.runs.run_folder import RECIPE_NAME, recipe_of
from segtrain.runs.trials import SweepState, Trial, trial_folder
from segtrain.storage.files import Storage, is_remote, join
from segtrain.storage.scratch import scratch_folder
from segtrain.tune import space, sweep_record
from segtrain.tune.callback import Watching
from segtrain.tune.display import SweepDisplay, final_table, importance_lines
from segtrain.tune.placement_groups import TrialGroups
from segtrain.tune.search import PointSearch, Verdict
from segtrain.tune.stopping import Budget, Stopping
from segtrain.tune.sweep_record import SweepRecord, check_folder_is_new
from segtrain.tune.trial import run_trial

logger = logging.getLogger(__name__)

BUDGET = ("max_trials", "max_hours", "max_gpu_hours", "max_concurrent", "max_failures")
"""Fields of `tune` that may change between the attempts of a sweep."""


def run_sweep(recipe: Recipe, train: Train = train_with_tensorflow, *, resume: bool = False) -> Trial:
    """Search `tune.space` as the recipe says, and leave leaderboard, `best.yaml` and report in the run's folder.

    `train` is called in every trial's process, or in each of its workers, and must be picklable. With `resume` an
    earlier attempt of the same sweep goes on: finished trials are not run again, running ones resume from their
    checkpoints. Returns the trial with the highest dice. Raises:

    - UserError before anything starts, if the space, the data, the folder or the cluster does not fit;
    - RunError if no trial was scored;
    - TakenOverError if another driver, which began later, goes on with the sweep;
    - KeyboardInterrupt on Ctrl-C and SIGTERM, after which the sweep can be resumed.
    """
    recipe = as_it_began(absolute(recipe))
    storage = Storage(recipe.storage)
    starts = check_sweep(recipe, storage, resume=resume)
    data = pinned(recipe, storage)
    with nodes.connection():
        concurrent = _check_cluster(recipe)
        display = SweepDisplay(recipe.run.progress_every_s)
        if data.older_version is not None:
            display.note(data.older_version)
        try:
            return _Driver(data, train, starts, concurrent, display).run(resume=resume)
        finally:
            display.close()


def sweep_exists(recipe: Recipe) -> bool:
    """Whether the run's folder holds a sweep already."""
    return sweep_record.holds_sweep(absolute(recipe).run.folder, Storage(recipe.storage))


def dry_run(recipe: Recipe, *, resume: bool = False) -> list[str]:
    """Lines that say what `run_sweep` would do. Raises what it would raise before anything starts."""
    recipe = as_it_began(absolute(recipe))
    storage = Storage(recipe.storage)
    starts = check_sweep(recipe, storage, resume=resume)
    with nodes.connection():
        concurrent = _check_cluster(recipe)
        offer = nodes.offer()
    config = recipe.tune
    points = f", {len(space.grid(recipe))} points" if config.search == "grid" else ""
    return [
        recipe.to_yaml(),
        *(f"axis      {name}: {_axis(axis.model_dump(exclude_none=True))}" for name, axis in config.space.items()),
        f"search    {config.search}{points}, {config.max_trials} trials at most, {len(starts)} starting points",
        f"stopping  {config.stop} on {config.clock} of {recipe.train.epochs} epochs at most",
        f"at once   {concurrent} trials, each {needs(recipe.cluster)}",
        f"cluster   {offer}",
        f"folder    {recipe.run.folder}",
    ]


def _axis(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{kind} {value}" for kind, value in given.items() if value)


def check_sweep(recipe: Recipe, storage: Storage, *, resume: bool) -> list[space.Point]:
    """Raise UserError for what can be known to fail before Ray is there. Returns the points to start from."""
    if recipe.folds == "all":
        raise UserError("folds: a sweep scores its trials on one fold; leave folds=all out and train best.yaml with it")
    if recipe.cluster.min_workers != recipe.cluster.max_workers:
        raise UserError("cluster.workers: each trial of a sweep gets the same number; give one, not a range")
    space.check_space(recipe)
    for line in space.dropped(recipe):
        logger.warning("warning: %s", line)
    for line in workload_of(recipe, read_data_set(storage, recipe.data)).cautions:
        logger.warning(line)
    check_folder_is_new(recipe.run.folder, storage, resume=resume)
    if resume:
        _check_same_sweep(recipe, recipe_of(recipe.run.folder, storage))
    return [space.point_of(recipe, _start(source, storage), source) for source in recipe.tune.start_from]


def _check_same_sweep(recipe: Recipe, earlier: Recipe) -> None:
    before, now = (flatten(one.to_dict()["tune"]) for one in (earlier, recipe))
    names = [name for name in {**before, **now} if name not in BUDGET and before.get(name) != now.get(name)]
    differences = [
        *(f"tune.{name}: {shown(before.get(name))} -> {shown(now.get(name))}" for name in names),
        *identity_differences(earlier, recipe),
    ]
    if differences:
        raise UserError(
            f"--resume: {recipe.run.folder} holds another sweep ({'; '.join(differences)}); "
            f"give this one another name (run.name=...)"
        )


def _start(source: str, storage: Storage) -> Recipe:
    """The recipe of a file, or of the run in a folder."""
    if source.endswith((".yaml", ".yml")) and not is_remote(source):
        return load_recipe(source)
    try:
        return recipe_of(source, storage)
    except FileNotFoundError:
        raise UserError(f"tune.start_from: {source} is neither a recipe file nor the folder of a run") from None


def _check_cluster(recipe: Recipe) -> int:
    """How many trials run at once: never more than the cluster can hold, or their workers would wait for each other.

    Raises UserError where it can never hold one.
    """
    offer = nodes.offer()
    check_cluster(recipe, offer)
    room, most = offer.room(recipe.cluster), recipe.tune.max_concurrent
    if room is None and most is None:
        raise UserError(
            "tune.max_concurrent: this cluster's autoscaler does not tell how far it may grow; "
            "say how many trials may run at once"
        )
    held = None if room is None else max(room // recipe.cluster.max_workers, 1)
    return min(limit for limit in (held, most) if limit is not None)


class _Driver:
    """One attempt of a sweep."""

    def __init__(
        self,
        data: Pinned,
        train: Train,
        starts: Sequence[space.Point],
        concurrent: int,
        display: SweepDisplay,
    ) -> None:
        self._data = data
        self._recipe = data.recipe
        self._train = train
        self._starts = starts
        self._concurrent = concurrent
        self._display = display
        self._folder = data.recipe.run.folder
        self._record = SweepRecord(self._folder, data.storage)  # what cannot be read is refused before it is claimed
        self._budget = Budget(data.recipe.tune, self._record)

    def run(self, *, resume: bool) -> Trial:
        """Until all trials are over, the budget is spent, the user stops it, or another driver takes it over."""
        self._record.claim(resume=resume)
        self._record.put_file(RECIPE_NAME, self._recipe.to_yaml())
        nodes.warn_of_hasty_stops(self._display.note)
        self._display.note(f"{'resuming' if self._record.trials else 'starting'} {self._folder}")
        most = self._recipe.tune.max_trials
        try:
            if self._record.launched < most or self._record.to_resume():
                with signals_handled(self._budget.interrupt):
                    self._run_trials()
            else:  # its driver may have been killed before the leaderboard was written
                self._display.note(f"{self._folder} has its {most} trials (tune.max_trials); raise it to search on")
        except BaseException:
            self._leave("stopped", "the sweep itself failed; --resume goes on")
            self._record.raise_fault()
            raise
        self._record.raise_fault()
        if self._budget.interrupted:
            self._leave("stopped", "interrupted; --resume goes on")
            self._display.note(f"interrupted; the same command with --resume goes on with {self._folder}")
            raise KeyboardInterrupt
        spent = self._budget.spent()
        if spent is not None:
            self._display.note(f"{spent}; raise it and add --resume to go on")
        self._leave("stopped" if spent else "finished", spent or "")
        return self._finish()

    def _run_trials(self) -> None:
        groups = TrialGroups() if self._recipe.cluster.max_workers > 1 else None
        with (
            closing(groups) if groups else nullcontext(),
            scratch_folder("tune") as scratch,
            environment(
                TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
                TUNE_GLOBAL_CHECKPOINT_S="31536000",  # the sweep's own record is what a resume reads
                RAY_AIR_NEW_OUTPUT="0",
                RAY_CHDIR_TO_TRIAL_DIR="0",
                TUNE_DISABLE_SIGINT_HANDLER="1",
                TUNE_PRINT_ALL_TRIAL_ERRORS="0",  # the record and the display have them, in a line each
                TUNE_MAX_PENDING_TRIALS_PG=str(self._concurrent),  # else they would start one after the other
            ),
        ):
            free = groups.remove if groups else lambda number: None
            search = PointSearch(
                self._recipe, self._record, self._judge, max_concurrent=self._concurrent, starts=self._starts
            )
            # Not `tune.Tuner`: that pickles all its parts, and so would keep a second record beside the sweep's own.
            tune.run(
                partial(run_trial, train=self._train, groups=groups),
                name="sweep",
                storage_path=str(scratch),
                num_samples=-1,
                search_alg=search,
                scheduler=Stopping(self._recipe, self._record),
                stop=self._budget,
                resources_per_trial=_resources(self._recipe),
                max_failures=self._recipe.tune.max_failures,
                raise_on_failed_trial=False,
                callbacks=[Watching(self._record, search, self._display, self._recipe, free)],
                trial_dirname_creator=lambda trial: f"trial-{trial.config['number']:04d}",
                verbose=0,
            )

    def _judge(self, number: int, point: space.Point) -> Verdict:
        """The recipe of a trial, or why it cannot be."""
        try:
            asked = self._recipe.cluster
            threads = asked.compute_threads if asked.gpus_per_worker else asked.compute_threads or asked.cpus_per_worker
            own = {
                "run.storage": join(self._folder, "trials"),
                "run.name": f"{number:04d}",
                "evaluation.every_epochs": 1,
                "cluster.compute_threads": threads,
            }
            earlier = self._record.recipe_of(number)
            made = space.recipe_at(self._recipe, point) if earlier is None else space.taken_up(self._recipe, earlier)
            data = self._data.member(made.updated(own))
            fitted = fit_devices(data.recipe, workload_of(data.recipe, data.data_set))
        except UserError as error:
            return Verdict(None, str(error))
        return Verdict(fitted.recipe, parameters=parameters(fitted.recipe.model), memory_bytes=fitted.footprint.total)

    def _leave(self, state: SweepState, reason: str) -> None:
        """Keep how the sweep ended, trials under way as ones to go on with, and the leaderboard so far."""
        self._record.interrupted(reason or "the sweep ended")
        self._record.put_file(LEADERBOARD_NAME, leaderboard.to_csv(self._record.trials, list(self._recipe.tune.space)))
        self._record.put_sweep(state, reason)

    def _finish(self) -> Trial:
        """Write the best recipe and the report, and show the leaderboard. Raises RunError where nothing was scored.

        A driver that is killed meanwhile has left a sweep whose trials are all over: --resume comes here at once.
        """
        self._record.raise_fault()
        trials = self._record.trials
        axes = self._recipe.tune.space
        for line in [*final_table(trials, list(axes)), *importance_lines(trials, axes)]:
            self._display.note(line)
        best = next(iter(leaderboard.ranked(trials)), None)
        if best is None:
            raise RunError(f"no trial of {self._folder} was scored; {LEADERBOARD_NAME} there has the reasons")
        own = recipe_of(trial_folder(self._folder, best.number), self._data.storage)
        url = join(self._folder, BEST_NAME)
        run = self._recipe.run
        text = leaderboard.best_yaml(own, best, self._folder, name=f"{run.name}-best", storage=run.storage)
        self._record.put_file(BEST_NAME, text)
        self._record.raise_fault()
        self._display.note(f"leaderboard {join(self._folder, LEADERBOARD_NAME)}")
        self._display.note(f"report      {write_report(self._folder, self._data.storage)}")
        self._display.note(f"best        {url}")
        here = "best.yaml, copied to this machine" if is_remote(url) else shlex.quote(url)
        self._display.note(f"next        python jobs/train.py {here}")
        return best


def _resources(recipe: Recipe) -> tune.PlacementGroupFactory:
    """Of a trial's own process: all of a run with one worker; where Ray Train asks for several, next to nothing.

    Next to nothing is a share of being the head: the node that is lost last, and Tune wants some resource.
    """
    asked = recipe.cluster
    if asked.max_workers > 1:
        return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([nodes.bundle(asked)])
