"""The model of tests/bench/scaling.py, on numbers that can be worked out by hand."""

from dataclasses import replace

import pytest

from segtrain.config import UNetConfig, load_recipe
from segtrain.memory.kernels import DNN
from segtrain.memory.operations import network
from tests.bench import scaling
from tests.bench.counted_step import LAUNCH_S
from tests.bench.scaling import Load, Node
from tests.support.places import REPOSITORY

MACHINE = Node(
    "m", 4, link_bytes_per_s=10e9, link_latency_s=1e-5, network_bytes_per_s=1e9, network_latency_s=1e-4, cores=8
)
LOAD = Load(pictures=10, picture_s=0.01, gradient_bytes=100e6, pairs_per_core_s=100.0, picture_bytes=1e6)


def test_a_ring_sends_twice_all_but_one_share_and_a_tree_needs_few_hops() -> None:
    # 2 x 3/4 x 100 MB at 10 GB/s is 15 ms, and 6 hops of 10 us.
    assert scaling.ring_s(100e6, 4, 10e9, 1e-5) == pytest.approx(0.015 + 6e-5)
    # Twice 100 MB is 20 ms, and twice log2(8) hops.
    assert scaling.tree_s(100e6, 8, 10e9, 1e-5) == pytest.approx(0.020 + 6e-5)
    assert scaling.ring_s(100e6, 1, 10e9, 1e-5) == scaling.tree_s(100e6, 1, 10e9, 1e-5) == 0.0
    # Of nothing only hops are left: 14 round a ring of 8, 6 in a tree.
    assert scaling.collective_s(0.0, 8, 10e9, 1e-5) == pytest.approx(6e-5)


def test_gradients_go_through_the_machine_first_and_then_once_through_the_network() -> None:
    assert scaling.all_reduce_s(100e6, 4, MACHINE) == pytest.approx(0.01506)
    # Two machines: 2 x 1/2 x 100 MB at 1 GB/s and two hops of 100 us more.
    assert scaling.all_reduce_s(100e6, 8, MACHINE) == pytest.approx(0.01506 + 0.1 + 2e-4)


def test_a_step_is_the_sum_of_the_devices_parts_and_waits_for_slower_input() -> None:
    alone = scaling.step_of(LOAD, 1, MACHINE)
    assert alone.compute_s == pytest.approx(0.1)
    assert alone.gradients_s == alone.waiting_s == 0.0
    # 10 pictures at 800 a second.
    assert alone.input_s == pytest.approx(0.0125)
    assert alone.bound == "compute"
    four = scaling.step_of(replace(LOAD, small_collectives=3), 4, MACHINE)
    # Three sums of nothing over four members: 4 hops of a tree each.
    assert four.statistics_s == pytest.approx(3 * 4e-5)
    # 1 % of 0.1 s times Blom's 3.625 / 4.25, which is 1.049 standard deviations.
    assert four.waiting_s == pytest.approx(0.001 * 1.049, rel=1e-3)
    assert four.seconds == pytest.approx(0.1 + 0.01506 + 1.2e-4 + 0.001049, rel=1e-4)
    # 40 MB of the four GPUs through the network's 1 GB/s.
    assert four.storage_s == pytest.approx(0.04)
    hungry = scaling.step_of(replace(LOAD, pairs_per_core_s=10.0), 4, MACHINE)
    assert hungry.seconds == pytest.approx(0.5)
    assert hungry.bound == "input"


def test_a_checkpoint_costs_its_copy_and_what_the_next_save_waits_for_it() -> None:
    # 6 GB are copied in 1 s and written in 6 + 30 s, less than the 100 s to the next one: 1 %.
    saving = replace(LOAD, checkpoint_bytes=6e9, checkpoint_every_s=100.0, packed_bytes_per_s=1e9)
    assert scaling.step_of(saving, 1, MACHINE).checkpoint_s == pytest.approx(0.001)
    # Every 20 s another one would wait 16 s for it: 17 s of each 20.
    hurried = replace(saving, checkpoint_every_s=20.0)
    assert scaling.step_of(hurried, 1, MACHINE).checkpoint_s == pytest.approx(0.085)


def test_a_fixed_global_batch_leaves_each_gpu_less_to_do() -> None:
    fixed = replace(LOAD, fixed_s=0.02, gradient_bytes=0.0)
    share = scaling.share_of(fixed, 16, 4)
    assert share.pictures == 4
    assert scaling.step_of(share, 4, MACHINE).compute_s == pytest.approx(0.06)
    assert scaling.rate_of(scaling.share_of(fixed, 16, 1), 1, MACHINE) == pytest.approx(16 / 0.18)


def test_several_gpus_start_more_kernels_and_norms_wait_for_the_memory() -> None:
    load = replace(LOAD, gradient_bytes=0.0, fixed_s=0.02, fixed_together_s=0.03, passes_bytes=1e9)
    machine = replace(MACHINE, speed=0.5, memory_bytes_per_s=100e9)
    # 10 pictures of 10 ms at half speed, and 1 GB of each at 100 GB/s.
    assert scaling.step_of(load, 1, machine).compute_s == pytest.approx(0.02 + 10 * (0.02 + 0.01))
    assert scaling.step_of(load, 2, machine).compute_s == pytest.approx(0.03 + 10 * (0.02 + 0.01))


def test_the_guides_estimate_of_carvana_on_an_a10g_is_the_models() -> None:
    load = scaling.load_of(load_recipe(REPOSITORY / "jobs/recipes/carvana.yaml"), 8)
    assert 20 <= scaling.rate_of(load, 1, scaling.G5) <= 30
    told = (REPOSITORY / "docs/kubernetes.md").read_text()
    kernels = round(load.fixed_s / LAUNCH_S)
    assert f"8 x {1e3 * load.picture_s / scaling.G5.speed:.0f} ms for convolutions" in told
    assert f"8 x {1e3 * load.passes_bytes / scaling.G5.memory_bytes_per_s:.0f} ms for the" in told
    assert f"{load.passes_bytes / 1e9:.1f} GB" in told
    assert f"{1e3 * load.fixed_s:.0f} ms to start {kernels} kernels" in told
    assert f"together {scaling.step_of(load, 1, scaling.G5).seconds:.2f} s" in told


def test_multiplications_of_small_networks_are_those_counted_by_hand() -> None:
    model = UNetConfig(filters=2, depth=1, convolutions=1, norm="none", up="transpose_2x2")
    net = network(model, batch=1, height=4, width=4, channels=3, precision="float32", kernels=DNN)
    # 3 to 2 at 16 pixels, 2 to 4 at 4, up 4 to 2 from 4, 4 to 2 at 16, 2 to 1 at 16; a bias counts as a weight.
    assert scaling.multiplications(net) == 56 * 16 + 76 * 4 + 34 * 4 + 74 * 16 + 3 * 16
    # 20 to 18, 16, 8 below: 6, 4; up: 8, 6, 4.
    by_hand = 9 * (18**2 + 16**2) + 9 * (6**2 * 2 + 4**2 * 4) + 16 * 8 + 9 * (6**2 * 2 + 4**2) + 4**2 * 2
    assert scaling.unpadded_multiplications(20, filters=1, depth=1) == by_hand


def test_the_published_speed_ups_are_7_1_to_7_4_and_less_than_the_models() -> None:
    rows = {each.name: each for each in scaling.PUBLISHED}
    assert rows["UNet_Medical V100 FP32"].speed_up == pytest.approx(7.07, abs=0.005)
    assert rows["UNet_Medical A100 TF32"].speed_up == pytest.approx(7.43, abs=0.005)
    for each in scaling.PUBLISHED:
        assert each.missing_s > 0
        assert each.modelled().gradients_s < 0.02 * each.modelled().seconds
    assert 0.04 < scaling.missing_share() < 0.13
