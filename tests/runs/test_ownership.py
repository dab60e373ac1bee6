"""Of several processes that were told to write a folder the newest does; an older one finds out before it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.errors import TakenOverError, UserError
from segtrain.runs.ownership import RunClaim, take_run, write_while
from segtrain.storage.files import Storage


class Held(Storage):
    """Storage whose next conditional write waits at the write itself until others have done something."""

    meanwhile: Callable[[], None] | None = None

    def write_if_version(self, url: str, data: bytes, version: str | None) -> None:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        super().write_if_version(url, data, version)


@pytest.fixture(params=["local", "in a bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/run" if request.param == "local" else str(request.getfixturevalue("s3_root"))


def test_the_newest_driver_has_the_folder_and_its_newest_chief_writes_it(folder: str) -> None:
    first = take_run(folder, Storage())
    drivers = [RunClaim(folder, Storage(), first)]
    chiefs = [RunClaim(folder, Storage(), first) for _ in range(2)]
    chiefs[0].begin_chief()
    chiefs[0].check()
    chiefs[1].begin_chief()  # as after a group of workers was lost
    with pytest.raises(TakenOverError, match=r"^.* is trained by another process by now, which began later; this one"):
        chiefs[0].check()
    chiefs[1].check()
    drivers[0].check()
    second = take_run(folder, Storage())
    for claim in (chiefs[1], drivers[0]):
        with pytest.raises(TakenOverError):
            claim.check()
    with pytest.raises(TakenOverError):  # nor does a new chief of the older driver take it back
        RunClaim(folder, Storage(), first).begin_chief()
    RunClaim(folder, Storage(), second).check()


def test_a_chief_that_is_held_up_while_it_claims_does_not_take_the_folder_from_a_later_driver(folder: str) -> None:
    storage = Held()
    token, later = take_run(folder, storage), []
    storage.meanwhile = lambda: later.append(take_run(folder, Storage()))
    with pytest.raises(TakenOverError):
        RunClaim(folder, storage, token).begin_chief()
    RunClaim(folder, Storage(), later[0]).check()


def test_a_driver_that_may_not_have_the_folder_any_more_takes_nothing(folder: str) -> None:
    """Two drivers with two recipes in a new folder: the second one finds that of the first when it claims."""
    storage, others = Held(), []

    def check() -> None:
        if others:
            raise UserError("it holds a run of another recipe")

    storage.meanwhile = lambda: others.append(take_run(folder, Storage()))
    with pytest.raises(UserError, match="another recipe"):
        take_run(folder, storage, check)
    RunClaim(folder, Storage(), others[0]).check()


def test_a_write_that_was_begun_before_the_folder_was_taken_over_does_not_land(folder: str) -> None:
    storage, url = Held(), f"{folder}/state.json"
    claim = RunClaim(folder, storage, take_run(folder, storage))
    write_while(claim.check, url, b"mine", storage)

    def take_over() -> None:
        RunClaim(folder, Storage(), take_run(folder, Storage())).begin_chief()
        Storage().write_bytes(url, b"the other's")

    storage.meanwhile = take_over
    with pytest.raises(TakenOverError):
        write_while(claim.check, url, b"mine, later", storage)
    assert Storage().read_bytes(url) == b"the other's"


def test_a_write_beside_which_another_came_is_done_again_by_the_owner(folder: str) -> None:
    storage, url = Held(), f"{folder}/report.html"
    claim = RunClaim(folder, storage, take_run(folder, storage))
    storage.meanwhile = lambda: Storage().write_bytes(url, b"a report's")
    write_while(claim.check, url, b"mine", storage)
    assert Storage().read_bytes(url) == b"mine"
