"""What a dry run says of batch, memory and what was changed to fit the devices."""

from segtrain.cluster.capacity import Node, Offer
from segtrain.config import Recipe, override
from segtrain.launch.dry_run_lines import plan_lines
from segtrain.launch.workload import Size, fit_devices

CPU_NODE = Node("a", cpus=4, gpus=0)
GPU_NODE = Node("b", cpus=8, gpus=4)


def test_the_plan_shows_how_the_global_batch_is_split() -> None:
    fields = ["cluster.workers=3", "cluster.cpu_replicas_per_worker=2", "train.per_replica_batch_size=2"]
    size = Size(100, 25, 7, training_bytes=3 * 2**29, validation_bytes=2**20, height=1280, width=1918)
    fitted = fit_devices(override(Recipe(), fields), size)
    lines = plan_lines(fitted, size, Offer([CPU_NODE]))
    assert "steps     7 an epoch, 70 in 10 epochs" in lines
    assert "batch     16 = 3 workers x 2 replicas x 2 passes x 2 pictures, 8 of them empty" in lines
    assert "data      1.50 GiB to read an epoch, 1 MiB to validate" in lines
    assert "network   2,160,177 parameters" in lines
    assert any(line.startswith("memory    about ") and "optimizer 16 MiB" in line for line in lines)


def test_the_plan_says_what_was_changed_to_fit_the_devices() -> None:
    fields = ["data.height=1280", "data.width=1918", f"cluster.device_bytes={8 * 2**30}", "cluster.gpus_per_worker=1"]
    size = Size(100, 25, 7, training_bytes=2**30, validation_bytes=2**20, height=1280, width=1918)
    lines = plan_lines(fit_devices(override(Recipe(), fields), size), size, Offer([GPU_NODE]))
    assert "batch     16 = 1 worker x 1 replica x 8 passes x 2 pictures" in lines
    assert any(line.startswith("fits      8.00 GiB: as asked it would need ") for line in lines)
