"""What a bench tells."""

from segtrain.config import Recipe, override
from segtrain.launch.bench_run import Measured
from segtrain.runs.status import Speed

SPEED = Speed(
    start_s=12.5, loop_s=0.25, input_wait_s=0.05, step_s=0.2, input_s=0.1, peak_bytes=3 * 2**30, device="NVIDIA H100"
)


def measured() -> Measured:
    fields = ["train.global_batch_size=16", "cluster.workers=2", "cluster.cpu_replicas_per_worker=4"]
    return Measured(override(Recipe(), fields), 640 * 960, 2 * 2**30, SPEED)


def test_rates_are_those_of_the_global_batch() -> None:
    values = measured().values()
    assert (values["step_images_per_s"], values["input_images_per_s"], values["loop_images_per_s"]) == (80, 160, 64)
    assert values["loop_megapixels_per_s"] == 39.32  # 64 x 640 x 960
    assert values["input_wait_share"] == 0.2
    assert values["replicas"] == 8


def test_the_table_says_what_bounds_the_loop_and_what_was_predicted() -> None:
    assert measured().lines() == [
        "device    NVIDIA H100, 8 replicas in all, 16 pictures a step",
        "start           12.5 s to the end of the first step",
        "step           200.0 ms        80.0 pictures/s        49.2 megapixels/s",
        "input          100.0 ms       160.0 pictures/s        98.3 megapixels/s",
        "loop           250.0 ms        64.0 pictures/s        39.3 megapixels/s",
        "waiting        20.0% of the loop's time is spent waiting for input",
        "memory    2.00 GiB a replica predicted; the first GPU of a worker held 3.00 GiB at most",
    ]
