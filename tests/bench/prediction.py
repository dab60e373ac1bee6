"""How much of the bare forward pass's speed a whole prediction keeps: read, decode, forward, blend, encode, write.

    python -m tests.bench.prediction           both ways below, some minutes
    python -m tests.bench.prediction one N     one of them in this process, TensorFlow on N threads; a line of JSON

Pictures of 1918x1280 from a data set, through a network that takes them at 192x288 and at most 50 ms each; masks as
PNG and run lengths come out at 1918x1280. Bare is the same network on the same decoded pictures, in the same batches.
Both take turns, since the machine drifts.

- One thread for TensorFlow, the other core for the host's work: as on a machine with a GPU, where the forward pass
  takes no core. The project's figure, at least 0.9, is this one.
- All cores for TensorFlow: the host's work then takes from the forward pass what it needs, whatever the order, so the
  ratio can be no better than forward / (forward + host) in CPU time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtrain.cluster.fleet import TASKS_AT_ONCE
from segtrain.config import Recipe, UNetConfig, override
from segtrain.dataset.shards import Row
from segtrain.prepare.prepare_set import prepare
from tests.bench.measuring import REPOSITORY, Measured, Spread, take_turns

if TYPE_CHECKING:
    from segtrain.inference.predictor import Prepared
    from segtrain.prediction.predict_worker import PredictionWorker
    from segtrain.prediction.tasks import Task

CARS, VIEWS = 4, 16
REPEATS = 2
"""A round goes through the data set so often, so that filling and draining the pipeline weigh little."""
ROUNDS = 4
SIZE = (192, 288)
BATCH = 8
MODEL = UNetConfig(filters=8, depth=4, norm="batch")


def main() -> None:
    """Make the data set and run each way in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="segtrain-bench-") as folder:
        data = ["source.kind=synthetic", f"source.cars={CARS}", f"source.views={VIEWS}"]
        prepare(override(Recipe(), [*data, "prepare.min_row_groups=1", "prepare.folds=2"]), f"{folder}/set")
        for threads in (1, os.cpu_count() or 1):
            environment = os.environ | {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, "-m", "tests.bench.prediction", "one", str(threads), folder]
            done = subprocess.run(
                command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            show(threads, json.loads(done.stdout.splitlines()[-1]))


def show(threads: int, found: dict[str, Any]) -> None:
    """Print the figures of one way."""
    ratio, bound = Spread(*found["ratio"]), found["cpu_bound"]
    cores = os.cpu_count()
    print(
        f"TensorFlow on {threads} of {cores} cores: forward {found['forward_ms']:.1f} ms, whole pipeline "
        f"{found['pipeline_ms']:.1f} ms a picture; ratio {ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})\n"
        f"  CPU a picture: forward {found['forward_cpu_ms']:.1f} ms, all the rest {found['host_cpu_ms']:.1f} ms "
        f"({found['runs']:.0f} runs a mask); by that the ratio is {bound:.2f} at most on {cores} idle cores (load "
        f"average {os.getloadavg()[0]:.0f})"
    )


def one(threads: int, folder: str) -> dict[str, Any]:
    """Measure in this process, whose TensorFlow has been told how many threads to use."""
    from segtrain.inference.load_networks import configure_device
    from segtrain.inference.stored_networks import read_networks
    from segtrain.prediction import ledger
    from segtrain.prediction.part_files import read_part
    from segtrain.prediction.predict_worker import PredictionWorker
    from segtrain.prediction.tasks import take_inventory
    from segtrain.storage.files import Storage

    configure_device(Recipe().cluster)
    write_model(Path(folder, "best"))
    inventory = take_inventory(Storage(), f"{folder}/set", None)
    tasks = inventory.tasks() * REPEATS
    settings = [f"inference.batch_size={BATCH}", f"inference.threshold={middle(folder, tasks)}"]
    recipe = override(Recipe(), settings)
    networks = read_networks(f"{folder}/best/model.keras", Storage())
    token = ledger.own(Storage(), f"{folder}/{threads}")
    worker = PredictionWorker(recipe, networks, f"{folder}/set", inventory.manifest, f"{folder}/{threads}", token)
    pictures = sum(len(task.ids) for task in tasks)
    cpu_s: dict[str, float] = {}

    def pipeline() -> Measured:
        with ThreadPoolExecutor(TASKS_AT_ONCE) as pool:
            return timed("pipeline", lambda: list(pool.map(worker, tasks)))

    prepared = prepare_all(worker, tasks[: len(tasks) // REPEATS])

    def bare() -> Measured:
        def forward() -> None:
            for _ in range(REPEATS):
                for first in range(0, len(prepared), BATCH):
                    worker._rows.predictor.forward(prepared[first : first + BATCH])

        return timed("bare", forward)

    def timed(name: str, work: Callable[[], object]) -> Measured:
        started, cpu = time.perf_counter(), time.process_time()
        work()
        cpu_s[name] = min(cpu_s.get(name, float("inf")), time.process_time() - cpu)
        return Measured(pictures, time.perf_counter() - started)

    pipeline(), bare()  # graphs are built and the files' blocks come into memory
    found = take_turns({"bare": bare, "pipeline": pipeline}, ROUNDS, lambda number, name: None)
    ratios = [whole.rate / alone.rate for whole, alone in zip(found["pipeline"], found["bare"], strict=True)]
    forward_cpu, host_cpu = cpu_s["bare"], cpu_s["pipeline"] - cpu_s["bare"]
    worker.close()
    masks = read_part(Storage(), ledger.part_url(f"{folder}/{threads}", tasks[0].name)).masks
    return {
        "runs": Spread.of([len(mask.rle.split()) // 2 for mask in masks]).median,
        "ratio": Spread.of(ratios),
        "forward_ms": 1000 / Spread.of([each.rate for each in found["bare"]]).median,
        "pipeline_ms": 1000 / Spread.of([each.rate for each in found["pipeline"]]).median,
        "forward_cpu_ms": 1000 * forward_cpu / pictures,
        "host_cpu_ms": 1000 * host_cpu / pictures,
        "cpu_bound": (forward_cpu / threads)
        / max(forward_cpu / threads, (forward_cpu + host_cpu) / (os.cpu_count() or 1)),
    }


def write_model(folder: Path) -> None:
    """A network whose every convolution is a mean, with the facts that training would leave beside it.

    It blurs, so that its masks are blobs: some 4,000 runs a mask, where a car has 700, which costs the host 2 ms a
    picture. One that has learnt nothing gives noise, whose 65,000 runs a mask take longer to write down than all the
    rest; its forward pass takes the same time.
    """
    import numpy as np

    from segtrain.models import build_model

    folder.mkdir(exist_ok=True)
    model = build_model(MODEL)
    for variable in model.trainable_variables:
        if len(variable.shape) == 4:  # (rows, columns, channels, channels)
            variable.assign(np.full(variable.shape, 1 / np.prod(variable.shape[:3]), np.float32))
    model.save(folder / "model.keras")
    takes = {"fit": "resize", "height": SIZE[0], "width": SIZE[1], "channels": 3}
    (folder / "metrics.json").write_text(json.dumps({"input": takes, "model": MODEL.model_dump(mode="json")}))


def middle(folder: str, tasks: Sequence["Task"]) -> float:
    """The median probability over a picture: a threshold that half of it reaches."""
    import numpy as np

    from segtrain.dataset.manifest import read_manifest
    from segtrain.inference.predictor import Predictor
    from segtrain.pipeline.decode import decode_image
    from segtrain.prediction.tasks import task_reader
    from segtrain.storage.files import Storage
    from tests.support.networks import load_members, probability_of

    with ThreadPoolExecutor(1) as io:
        row = task_reader(Storage(), f"{folder}/set", read_manifest(Storage(), f"{folder}/set"), io)(tasks[0])[0]
    assert isinstance(row, Row)
    predictor = Predictor(load_members(f"{folder}/best/model.keras", Storage()), Recipe().inference)
    return float(np.median(probability_of(predictor, decode_image(row, row.height, row.width))))


def prepare_all(worker: "PredictionWorker", tasks: Sequence["Task"]) -> list["Prepared"]:
    """What the forward pass gets of every picture of the tasks."""
    from segtrain.pipeline.decode import decode_image

    rows = [row for task in tasks for row in worker._read(task) if isinstance(row, Row)]
    return [worker._rows.predictor.prepare(partial(decode_image, row), row.height, row.width) for row in rows]


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(int(sys.argv[2]), sys.argv[3])))
    else:
        main()
