"""Estimates of a step from counts, on numbers that can be worked out by hand."""

import pytest

from segtrain.config import UNetConfig
from segtrain.memory.kernels import DNN
from segtrain.memory.operations import OperationList, network
from tests.bench import counted_step


def net(precision: str = "mixed_bfloat16", **settings: object) -> OperationList:
    model = UNetConfig.model_validate(settings)
    return network(model, batch=1, height=16, width=16, channels=3, precision=precision, kernels=DNN)


def test_the_network_that_was_counted_has_41_layers_with_weights() -> None:
    assert counted_step.layers_with_weights(net(depth=4)) == counted_step.COUNTED_LAYERS
    assert counted_step.layers_with_weights(net(depth=5)) == 50  # four convolutions, four norms, one up-convolution
    assert counted_step.layers_with_weights(net(depth=4, norm="none")) == 23


def test_starting_kernels_takes_longer_with_layers_and_with_several_replicas() -> None:
    assert counted_step.launching_s(41, 1) == pytest.approx(507 * 5e-6)
    assert counted_step.launching_s(41, 2) == counted_step.launching_s(41, 8) == pytest.approx(1025 * 5e-6)
    assert counted_step.launching_s(82, 1) == pytest.approx(1014 * 5e-6)


@pytest.mark.parametrize(("precision", "itemsize"), [("mixed_bfloat16", 2), ("float32", 4)])
def test_norms_pass_over_their_activations_eight_times(precision: str, itemsize: int) -> None:
    small = net(precision, filters=2, depth=1, convolutions=1)
    # 2 channels of 16x16 twice, 4 of 8x8 once.
    assert counted_step.norm_bytes(small) == 8 * itemsize * (2 * 2 * 256 + 4 * 64)
    assert counted_step.norm_bytes(net(precision, norm="none")) == 0


def test_a_pack_is_summed_once_it_is_full_and_what_is_left_at_the_end() -> None:
    assert counted_step.packs([3, 3, 9, 1], 5) == [6, 9, 1]
    assert counted_step.packs([5], 5) == [5, 0]
    assert counted_step.packs([], 5) == [0]


def test_a_pack_has_as_much_as_training_gives_it() -> None:
    from segtrain.training import gradient_sums

    assert counted_step.PACK_BYTES == gradient_sums.PACK_BYTES


def test_collectives_are_two_a_synchronized_norm_and_one_a_pack() -> None:
    assert counted_step.collectives(net(depth=4, filters=4), "synchronized") == 2 * 18 + 1
    assert counted_step.collectives(net(depth=4, filters=4, norm="batch"), "batch") == 1
    assert counted_step.collectives(net(depth=4, filters=4, norm="none"), "none") == 1
    # 132 MiB at 64 filters: as many packs as the graph of tests/training/test_step_graphs.py has.
    assert 2 <= counted_step.collectives(net(depth=4, filters=64), "synchronized") - 36 <= 4
