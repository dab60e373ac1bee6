"""Several writers of one place: exactly one wins, and whatever lands is whole."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segtrain.config import Recipe, override
from segtrain.dataset.manifest import Manifest
from segtrain.dataset.verify import verify
from segtrain.dataset.versions import files_of
from segtrain.errors import StorageError, UserError
from segtrain.prepare import destination, prepare_set, write_shards
from segtrain.prepare.destination import Destination
from segtrain.prepare.prepare_set import prepare
from segtrain.storage.files import Storage, join
from tests.support.small_sources import STORAGE, assert_whole, draw, lying_in

ROUNDS = 2


@pytest.fixture
def recipes(tmp_path: Path) -> list[Recipe]:
    """Two sources of other pictures with the same ids, and the first one again."""
    first, second = (draw(tmp_path / f"source-{shade}", shade) for shade in (10, 200))
    return [first, second, first]


@pytest.fixture(params=["local", "s3"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet."""
    return str(tmp_path / "set") if request.param == "local" else request.getfixturevalue("s3_root")


def side_by_side(
    recipes: list[Recipe], dest: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Manifest], list[UserError]]:
    """Prepare all of them in threads that start from one version: who landed, and what the others were told."""
    gate = threading.Barrier(len(recipes))
    landed: list[Manifest] = []
    refused: list[UserError] = []

    class Met(Destination):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            gate.wait()

    def run(recipe: Recipe) -> None:
        try:
            landed.append(prepare(recipe, dest, parallel=False))
        except UserError as error:
            refused.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(prepare_set, "Destination", Met)
        threads = [threading.Thread(target=run, args=(recipe,)) for recipe in recipes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return landed, refused


def test_of_writers_that_meet_one_wins_and_its_set_is_whole(
    recipes: list[Recipe], dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(ROUNDS):
        for shade in (10, 200):  # other pictures than are there: a writer that would change nothing writes nothing
            draw(tmp_path / f"source-{shade}", shade + number)
        (landed,), refused = side_by_side(recipes, dest, monkeypatch)
        assert len(refused) == len(recipes) - 1
        for error in refused:
            assert f"another jobs/prepare.py wrote {dest} meanwhile" in str(error)
        assert_whole(dest, landed)


def once(monkeypatch: pytest.MonkeyPatch, module: object, name: str, *, before: Callable[[], object]) -> None:
    """Let something else happen just before the next call of a function."""
    function = getattr(module, name)

    def meddled(*args: Any) -> Any:
        monkeypatch.setattr(module, name, function)
        before()
        return function(*args)

    monkeypatch.setattr(module, name, meddled)


def test_a_winner_that_tidies_up_late_leaves_the_next_set_whole(
    recipes: list[Recipe], dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(recipes[0], dest)
    successors: list[Manifest] = []
    once(monkeypatch, Destination, "_remove", before=lambda: successors.append(prepare(recipes[0], dest)))
    prepare(recipes[1], dest)
    assert_whole(dest, successors[0])


def test_a_loser_that_tidies_up_late_leaves_the_next_set_whole(
    recipes: list[Recipe], dest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    successors: list[Manifest] = []
    once(monkeypatch, destination, "write_manifest", before=lambda: prepare(recipes[1], dest))
    once(monkeypatch, Destination, "_leave", before=lambda: successors.append(prepare(recipes[0], dest)))
    with pytest.raises(UserError, match=r"another .* wrote"):
        prepare(recipes[0], dest)
    assert_whole(dest, successors[0])


def test_a_writer_that_fails_leaves_the_shards_of_its_twin(
    recipes: list[Recipe], dest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twins_fail() -> None:
        with pytest.raises(UserError, match="there are only 12 groups"):
            prepare(override(recipes[0], ["prepare.folds=13"]), dest)
        picture = tmp_path / "source-10/images/p03.png"
        once(monkeypatch, write_shards, "plan_shards", before=lambda: picture.write_bytes(b"other"))
        monkeypatch.setattr(write_shards, "load_finished", lambda *_: [])
        with pytest.raises(UserError, match=r"p03\.png changed meanwhile"):
            prepare(recipes[0], dest)

    once(monkeypatch, destination, "write_manifest", before=twins_fail)
    assert_whole(dest, prepare(recipes[0], dest))


def times_of(dest: str) -> dict[str, int]:
    return {path: (Path(dest) / path).stat().st_mtime_ns for path in lying_in(dest)}


def test_the_same_pictures_again_write_nothing(recipes: list[Recipe], tmp_path: Path) -> None:
    dest = str(tmp_path / "set")
    first = prepare(recipes[0], dest)
    before = times_of(dest)
    assert prepare(recipes[0], dest) == first
    assert times_of(dest) == before


def test_a_file_that_the_manifest_names_is_never_written_again(recipes: list[Recipe], tmp_path: Path) -> None:
    """Other shards of the same rows have the same fingerprint, and an index of their own."""
    dest = str(tmp_path / "set")
    first = prepare(recipes[0], dest)
    named = times_of(dest)
    second = prepare(override(recipes[0], ["prepare.shard_bytes=1024"]), dest)
    assert second.fingerprint == first.fingerprint
    assert second.index.path != first.index.path
    kept = {path: time for path, time in times_of(dest).items() if path in named and path != "manifest.json"}
    assert kept.items() <= named.items()
    assert files_of([first]) <= lying_in(dest)  # who reads it goes on
    assert_whole(dest, prepare(override(recipes[0], ["prepare.shard_bytes=1024"]), dest))


def test_a_writer_whose_manifest_was_deleted_meanwhile_deletes_nothing(
    recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = str(tmp_path / "set")
    prepare(recipes[0], dest)
    once(monkeypatch, destination, "write_manifest", before=lambda: STORAGE.delete(join(dest, "manifest.json")))
    before = lying_in(dest) - {"manifest.json"}
    with pytest.raises(UserError, match=r"another .* wrote"):
        prepare(recipes[1], dest)
    assert before < lying_in(dest)


def test_leftovers_that_cannot_be_removed_do_not_fail_a_set_that_has_landed(
    recipes: list[Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = str(tmp_path / "set")
    prepare(recipes[0], dest)

    def refuse(_: Storage, url: str) -> None:
        if "fold=" in url or "_prepare-" in url:
            raise StorageError(f"{url}: input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "delete", refuse)
        second = prepare(recipes[1], dest)
    assert verify(STORAGE, dest, second, every_s=1e9, parallel=False) == []
    third = prepare(recipes[1], dest)
    assert_whole(dest, third)
