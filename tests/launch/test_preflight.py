"""What is refused before anything starts."""

import math
from pathlib import Path

import pytest

from segtrain.cluster.offer import Node, Offer, check_offer, missing
from segtrain.config import ClusterConfig, Recipe, override
from segtrain.errors import UserError
from segtrain.launch import preflight
from segtrain.launch.preflight import Size
from segtrain.runs.networks import check_networks, recipe_to_score, recipes_of
from segtrain.storage.files import Storage

CPU_NODE = Node("a", cpus=4, gpus=0)
GPU_NODE = Node("b", cpus=8, gpus=4)


def run_in(folder: Path, *fields: str) -> Recipe:
    return override(Recipe(), [f"run.storage={folder}", "run.name=test", *fields])


def keep(recipe: Recipe) -> Recipe:
    """Leave the recipe in its run's folder, as a run does."""
    folder = Path(recipe.run.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    return recipe


class TestRunFolder:
    def test_an_empty_folder_is_a_new_run(self, tmp_path: Path) -> None:
        assert not preflight.check_run_folder(run_in(tmp_path), Storage(), extend=False)

    def test_the_same_recipe_goes_on_whatever_is_no_part_of_its_identity(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path))
        changed = run_in(tmp_path, "cluster.workers=2", "train.per_replica_batch_size=2", "data.cache=memory")
        assert preflight.check_run_folder(changed, Storage(), extend=False)

    def test_another_recipe_is_refused_with_the_fields_that_differ(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path))
        changed = run_in(tmp_path, "model.filters=32", "optimizer.learning_rate=0.1")
        with pytest.raises(
            UserError, match=r"another recipe \(model.filters: 16 -> 32; optimizer.learning_rate: 0.001"
        ):
            preflight.check_run_folder(changed, Storage(), extend=True)

    def test_more_epochs_need_extend(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path, "train.epochs=3"))
        longer = run_in(tmp_path, "train.epochs=5")
        with pytest.raises(UserError, match=r"train.epochs: 3 -> 5\); train on with --extend"):
            preflight.check_run_folder(longer, Storage(), extend=False)
        assert preflight.check_run_folder(longer, Storage(), extend=True)

    def test_fewer_epochs_are_refused_even_with_extend(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path, "train.epochs=3"))
        with pytest.raises(UserError, match=r"train.epochs: 3 -> 2\); give the run another name"):
            preflight.check_run_folder(run_in(tmp_path, "train.epochs=2"), Storage(), extend=True)

    def test_a_recipe_of_another_segtrain_is_refused(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path))
        (tmp_path / "test/recipe.yaml").write_text("model: {wings: 2}\n")
        with pytest.raises(UserError, match=r"test/recipe.yaml is not a recipe that this segtrain reads"):
            preflight.check_run_folder(run_in(tmp_path), Storage(), extend=False)


class TestData:
    def test_a_data_set_must_be_named(self) -> None:
        with pytest.raises(UserError, match=r"^data.root is not set"):
            preflight.check_data_set(Recipe(), Storage())

    def test_a_folder_without_a_manifest_is_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no manifest.json in .*jobs/prepare.py"):
            preflight.check_data_set(override(Recipe(), [f"data.root={tmp_path}"]), Storage())


class TestPaths:
    def test_local_paths_become_absolute_and_urls_stay(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        recipe = preflight.absolute(override(Recipe(), ["data.root=set", "train.init_from=s3://b/run"]))
        assert recipe.data.root == str(tmp_path / "set")
        assert recipe.run.folder == str(tmp_path / "runs/run")
        assert recipe.train.init_from == "s3://b/run"

    def test_a_job_may_not_keep_its_run_in_the_uploaded_working_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uploaded = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
        uploaded.mkdir(parents=True)
        monkeypatch.chdir(uploaded)
        with pytest.raises(UserError, match=r"run.storage: 'runs' would be deleted"):
            preflight.absolute(Recipe())
        preflight.absolute(override(Recipe(), ["run.storage=s3://b/runs"]))

    @pytest.mark.parametrize("field", ["data.root", "run.storage", "train.init_from"])
    def test_a_local_path_is_refused_on_several_machines(self, field: str) -> None:
        remote = ["data.root=s3://b/set", "run.storage=s3://b/runs", "train.init_from=s3://b/other"]
        recipe = override(Recipe(), [*remote, f"{field}=/local"])
        preflight.check_shared_paths(recipe, Offer([CPU_NODE, CPU_NODE]))
        with pytest.raises(UserError, match=f"{field}: /local is a local path, but the cluster has 2 machines"):
            preflight.check_shared_paths(recipe, Offer([CPU_NODE, GPU_NODE]))


class TestRoom:
    @pytest.mark.parametrize(
        ("asked", "fits"),
        [
            (ClusterConfig(workers=3, cpus_per_worker=4), True),
            (ClusterConfig(workers=4, cpus_per_worker=4), False),
            (ClusterConfig(workers=2, cpus_per_worker=6), False),
            (ClusterConfig(workers=2, gpus_per_worker=2), True),
            (ClusterConfig(workers=1, gpus_per_worker=8), False),
        ],
    )
    def test_each_worker_must_fit_on_one_node(self, asked: ClusterConfig, fits: bool) -> None:
        offer = Offer([CPU_NODE, GPU_NODE])
        if fits:
            check_offer(asked, offer)
        else:
            with pytest.raises(UserError, match="but the cluster has 2 nodes with 12 CPUs and 4 GPUs"):
                check_offer(asked, offer)

    def test_gpus_where_there_are_none_are_refused_with_the_way_out(self) -> None:
        with pytest.raises(UserError, match=r"1 worker with 1 CPU and 2 GPUs each.*set cluster.gpus_per_worker=0"):
            check_offer(ClusterConfig(gpus_per_worker=2), Offer([CPU_NODE]))

    def test_an_autoscaler_may_still_bring_what_is_missing(self) -> None:
        offer = Offer([CPU_NODE], limits={"CPU": 64, "GPU": 8})
        check_offer(ClusterConfig(workers=4, gpus_per_worker=2), offer)
        with pytest.raises(UserError, match="and may grow"):
            check_offer(ClusterConfig(workers=8, gpus_per_worker=2), offer)

    def test_an_autoscaler_that_does_not_tell_its_limits_may_bring_anything(self) -> None:
        offer = Offer([CPU_NODE], limits={"CPU": math.inf, "GPU": math.inf})
        asked = ClusterConfig(workers=64, gpus_per_worker=8, cpus_per_worker=3)
        assert offer.room(asked) is None
        check_offer(asked, offer)

    def test_of_a_range_of_workers_the_fewest_must_fit(self) -> None:
        check_offer(ClusterConfig(workers=(3, 9), cpus_per_worker=4), Offer([CPU_NODE, GPU_NODE]))
        with pytest.raises(UserError, match="the run asks for 4 to 9 workers with 4 CPUs each"):
            check_offer(ClusterConfig(workers=(4, 9), cpus_per_worker=4), Offer([CPU_NODE, GPU_NODE]))

    def test_what_is_missing_counts_whole_workers_and_names_what_is_free(self) -> None:
        asked = ClusterConfig(workers=3, gpus_per_worker=2)
        free = [Node("a", 8.0, 2.0), Node("b", 8.0, 1.0)]
        assert missing(asked, free) == "room for 2 workers is missing, with 16 CPUs and 3 GPUs free"
        assert "there is room for 1" in missing(ClusterConfig(gpus_per_worker=2), free)


def test_the_plan_shows_how_the_global_batch_is_split() -> None:
    fields = ["cluster.workers=3", "cluster.cpu_replicas_per_worker=2", "train.per_replica_batch_size=2"]
    size = Size(100, 25, 7, training_bytes=3 * 2**29, validation_bytes=2**20, height=1280, width=1918)
    fitted = preflight.fit_devices(override(Recipe(), fields), size)
    lines = preflight.plan_lines(fitted, size, Offer([CPU_NODE]))
    assert "steps     7 an epoch, 70 in 10 epochs" in lines
    assert "batch     16 = 3 workers x 2 replicas x 2 passes x 2 pictures, 8 of them empty" in lines
    assert "data      1.50 GiB to read an epoch, 1 MiB to validate" in lines
    assert "network   2,161,649 parameters" in lines
    assert any(line.startswith("memory    about ") and "optimizer 16 MiB" in line for line in lines)


def test_the_plan_says_what_was_changed_to_fit_the_devices() -> None:
    fields = ["data.height=1280", "data.width=1918", f"cluster.device_bytes={8 * 2**30}", "cluster.gpus_per_worker=1"]
    size = Size(100, 25, 7, training_bytes=2**30, validation_bytes=2**20, height=1280, width=1918)
    lines = preflight.plan_lines(preflight.fit_devices(override(Recipe(), fields), size), size, Offer([GPU_NODE]))
    assert "batch     16 = 1 worker x 1 replica x 8 passes x 2 pictures" in lines
    assert any(line.startswith("fits      8.00 GiB: as asked it would need ") for line in lines)


class TestNetworks:
    """What is known of the networks that a job is given, before any of them is loaded."""

    def test_a_run_is_scored_where_its_folder_is_now_with_its_own_settings(self, tmp_path: Path) -> None:
        kept = keep(run_in(tmp_path, "model.filters=8", "cluster.workers=4", "data.root=/old", "data.test_fold=3"))
        Path(kept.run.folder).rename(tmp_path / "moved")
        recipe = recipe_to_score(f"{tmp_path}/moved/", "/new", ["data.fold=3"])
        assert recipe.data.root == "/new"
        assert recipe.data.fold == 3, "its test fold may be scored"
        assert recipe.model.filters == 8
        assert recipe.cluster.workers == 1
        assert recipe_to_score(f"{tmp_path}/moved", "/new", []).data.fold == 0

    def test_an_ensemble_is_scored_on_its_members_test_fold(self, tmp_path: Path) -> None:
        for fold in (0, 1):
            keep(run_in(tmp_path, f"run.name=fold-{fold}", f"data.fold={fold}", "data.test_fold=2", "folds=all"))
        (tmp_path / "ensemble.json").write_text('{"format_version": 1, "members": ["fold-0", "fold-1"]}')
        recipe = recipe_to_score(str(tmp_path), "/set", [])
        assert (recipe.data.fold, recipe.data.test_fold, recipe.folds) == (2, None, "one")
        folders = [folder for folder, _ in recipes_of(str(tmp_path), Storage())]
        assert folders == [f"{tmp_path}/fold-0", f"{tmp_path}/fold-1"]

    def test_a_model_without_a_recipe_has_the_defaults(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path, "model.filters=8"))
        source = f"{tmp_path}/test/best/model.keras, {tmp_path}/saved, other.keras"
        found = recipes_of(source, Storage())
        assert [folder for folder, _ in found] == [f"{tmp_path}/test", f"{tmp_path}/saved", "."]
        assert [recipe is not None for _, recipe in found] == [True, False, False]
        assert recipe_to_score("other.keras", "/set", []) == override(Recipe(), ["data.root=/set"])

    def test_where_there_is_no_network_the_places_are_named(self, tmp_path: Path) -> None:
        keep(run_in(tmp_path))
        with pytest.raises(
            UserError, match=r"there is no .*/test/best/model.keras or .*saved_model.pb; give the folder"
        ):
            check_networks(f"{tmp_path}/test", Storage())
        (tmp_path / "a.keras").touch()
        check_networks(f"{tmp_path}/a.keras", Storage())
        with pytest.raises(UserError, match=r"there is no .*/b.keras; give"):
            check_networks(f"{tmp_path}/a.keras, {tmp_path}/b.keras", Storage())

    @pytest.mark.parametrize("text", ["", "[]", "{}"])
    def test_an_entry_of_an_ensemble_that_is_none_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "ensemble.json").write_text(text)
        with pytest.raises(UserError, match=r"ensemble.json is not what folds=all writes"):
            recipes_of(str(tmp_path), Storage())
