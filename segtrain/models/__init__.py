"""Keras models of `segtrain.architectures`; importing the package registers the layers that a saved model names."""

from segtrain.models.build import build_model

__all__ = ["build_model"]
