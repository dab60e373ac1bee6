"""Which GPUs are a worker's own among those of its machine."""

import pytest

from segtrain.cluster.own_gpus import own_positions, visible_gpus
from segtrain.errors import UserError

UUIDS = ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-1f2e3d4c-0000-4106-c12f-20bd9faed9f6")
SLICES = ("MIG-a3f5c2d1-6b0e-5f0d-9c1b-2a4e6f8a0b1c", "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0")


@pytest.mark.parametrize(
    ("visible", "assigned", "positions"),
    [
        ("0,1,2,3", ["0"], (0,)),
        ("0,1,2,3", ["2", "3"], (2, 3)),
        ("0, 1", ["1"], (1,)),
        ("4,6", ["6"], (1,)),
        ("0,1,10,11,2", ["10", "2"], (2, 4)),  # Ray sorts names, not numbers
        (",".join(UUIDS), [UUIDS[1]], (1,)),
        (SLICES[1], [SLICES[1]], (0,)),
        ("3", ["3"], (0,)),
        (None, ["2"], (2,)),
        ("0,1", [], ()),
        (None, [], ()),
    ],
)
def test_a_workers_gpus_are_told_by_their_places_in_what_its_process_sees(
    visible: str | None, assigned: list[str], positions: tuple[int, ...]
) -> None:
    assert own_positions(visible, assigned) == positions


def test_the_workers_of_a_machine_share_out_what_all_of_them_see() -> None:
    visible = "0,1,2,3,4,5,6,7"
    shares = [own_positions(visible, [str(2 * rank), str(2 * rank + 1)]) for rank in range(4)]
    assert [position for share in shares for position in share] == list(range(8))


@pytest.mark.parametrize("visible", ["0,1", "", None])
def test_a_gpu_that_the_process_cannot_see_is_one_sentence(visible: str | None) -> None:
    gpu = UUIDS[0] if visible is None else "2"
    with pytest.raises(UserError, match=rf"Ray assigned GPU {gpu} .* CUDA_VISIBLE_DEVICES is (0,1|not set); leave"):
        own_positions(visible, [gpu])


def test_slices_of_a_gpu_are_never_shown_to_another_worker_and_whole_gpus_are() -> None:
    assert visible_gpus(",".join(SLICES), [SLICES[1]]) == SLICES[1]
    assert visible_gpus("0,1,2,3", ["2"]) == "0,1,2,3"
    assert visible_gpus(",".join(UUIDS), [UUIDS[1]]) == ",".join(UUIDS)
    assert visible_gpus(None, ["0"]) is None
