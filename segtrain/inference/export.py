"""A trained network for use elsewhere: a SavedModel, or a `.keras` file, with its facts beside it."""

import keras

from segtrain.errors import UserError
from segtrain.inference.load_networks import load_network
from segtrain.inference.stored_networks import SAVED_MODEL, metrics_beside, read_networks
from segtrain.runs.run_folder import METRICS_NAME, MODEL_NAME
from segtrain.storage.files import Storage, join
from segtrain.storage.scratch import scratch_folder


def export(source: str, destination: str, storage: Storage) -> None:
    """Write the network of a run, or of a `.keras` file, to `destination`: a `.keras` file or a SavedModel's folder.

    Either maps pictures float32 (B, H, W, 3) in [0, 1] to logits (B, H, W, 1). The SavedModel needs TensorFlow alone;
    its signature is `serving_default`. `metrics.json` goes beside the file or into the folder, so that predicting
    from it needs nothing else. Nothing that is there is written over. Raises `UserError` where `source` is not one
    network of Keras or something is at `destination`.
    """
    is_file = destination.endswith(".keras")
    for url in (destination, metrics_beside(destination)) if is_file else (destination,):
        if storage.exists(url):
            raise UserError(f"{url} is there already; remove it or give another place to export to")
    networks = read_networks(source, storage, trust_saved_model=True)  # to be refused, not to be loaded
    if len(networks) > 1:
        raise UserError(f"{source} is an ensemble; export its members one by one: {networks[0].name} and so on")
    network = networks[0]
    if network.kind == "saved_model":
        raise UserError(f"{source} is a SavedModel already; copy it as it is, or export from the run")
    model = load_network(network).model
    if is_file:
        if network.metrics is not None:
            storage.write_bytes(metrics_beside(destination), network.metrics)
        storage.write_bytes(destination, network.files[MODEL_NAME])
    else:
        _write_saved_model(model, destination, network.metrics, storage)


def _write_saved_model(model: keras.Model, destination: str, metrics: bytes | None, storage: Storage) -> None:
    with scratch_folder("export") as folder:
        model.export(str(folder), format="tf_saved_model", verbose=False)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if metrics is not None:
            storage.write_bytes(join(destination, METRICS_NAME), metrics)
        # A folder is a model once this file is in it, so it comes last.
        for path in sorted(files, key=lambda path: path.name == SAVED_MODEL):
            storage.write_file(join(destination, path.relative_to(folder).as_posix()), path)
