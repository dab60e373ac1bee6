"""Trained networks for tests: loaded in one call, and applied to one picture."""

import numpy as np

from segtrain.inference.load_networks import Member, load_network
from segtrain.inference.predictor import Predictor
from segtrain.inference.stored_networks import read_networks
from segtrain.pipeline.decode import resize_image
from segtrain.storage.files import Storage


def load_members(source: str, storage: Storage, *, trust_saved_model: bool = False) -> list[Member]:
    """The networks that `source` names, read and loaded. Raises as `read_networks` and `load_network`."""
    return [load_network(network) for network in read_networks(source, storage, trust_saved_model=trust_saved_model)]


def probability_of(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """All three stages of a predictor: uint8 (H, W, 3) to probabilities float32 (H, W)."""
    prepared = predictor.prepare(lambda height, width: resize_image(image, height, width), *image.shape[:2])
    return predictor.finish(predictor.forward([prepared])[0])
