"""A trained network for use elsewhere: a SavedModel, or a `.keras` file, with its facts beside it."""

import keras

from segtrain.errors import UserError
from segtrain.inference.loading import METRICS, SAVED_MODEL, Member, load_members, metrics_beside
from segtrain.scratch import scratch_folder
from segtrain.storage import Storage, join


def export(source: str, destination: str, storage: Storage) -> None:
    """Write the network of a run, or of a `.keras` file, to `destination`: a `.keras` file or a SavedModel's folder.

    Either maps pictures float32 (B, H, W, 3) in [0, 1] to logits (B, H, W, 1). The SavedModel needs TensorFlow alone;
    its signature is `serving_default`. `metrics.json` goes beside the file or into the folder, so that predicting
    from it needs nothing else. Nothing that is there is written over. Raises `UserError` where `source` is not one
    network of Keras or something is at `destination`.
    """
    taken = [destination]
    if destination.endswith(".keras"):
        taken.append(metrics_beside(destination))
    for url in taken:
        if storage.exists(url):
            raise UserError(f"{url} is there already; remove it or give another place to export to")
    members = load_members(source, storage)
    if len(members) > 1:
        raise UserError(f"{source} is an ensemble; export its members one by one: {members[0].name} and so on")
    member = members[0]
    if member.model is None:
        raise UserError(f"{source} is a SavedModel already; copy it as it is, or export from the run")
    metrics = _metrics(member, storage)
    if destination.endswith(".keras"):
        if metrics is not None:
            storage.write_bytes(metrics_beside(destination), metrics)
        storage.write_bytes(destination, storage.read_bytes(member.name))
    else:
        _write_saved_model(member.model, destination, metrics, storage)


def _write_saved_model(model: keras.Model, destination: str, metrics: bytes | None, storage: Storage) -> None:
    with scratch_folder("export") as folder:
        model.export(str(folder), format="tf_saved_model", verbose=False)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if metrics is not None:
            storage.write_bytes(join(destination, METRICS), metrics)
        # A folder is a model once this file is in it, so it comes last.
        for path in sorted(files, key=lambda path: path.name == SAVED_MODEL):
            storage.write_file(join(destination, path.relative_to(folder).as_posix()), path)


def _metrics(member: Member, storage: Storage) -> bytes | None:
    return None if member.facts is None else storage.read_bytes(metrics_beside(member.name))
