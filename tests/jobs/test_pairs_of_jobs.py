"""Two jobs that meet in one folder, started up to two seconds apart; `tests/bench/pairs_of_jobs.py` does it longer."""

from pathlib import Path

import pytest

from tests.support.pairs_of_jobs import PAIRS, apart_s, lay_out, meet

ROUNDS = 3
pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.mark.parametrize("name", PAIRS)
def test_one_wins_or_both_are_right_and_nothing_is_mixed(name: str, tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        meet(PAIRS[name], lay_out(folder), apart_s())
