"""Weights that go into a network with, and into one without, biases before batch norm."""

import keras
import numpy as np
import pytest

from segtrain.architectures.layer_list import layer_list
from segtrain.config import UNetConfig
from segtrain.models import build_model
from segtrain.training.initial_weights import fitting_weights


def network(*, bias: bool, norm: str = "synchronized") -> tuple[UNetConfig, keras.Model]:
    config = UNetConfig(filters=4, depth=2, norm=norm, bias_before_norm=bias, norm_groups=2, down="strided")
    model = build_model(config, seed=3)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.uniform(0.1, 1.0, variable.shape))
    return config, model


@pytest.mark.parametrize("bias", [True, False], ids=["from one with biases", "from one without"])
def test_a_network_with_or_without_biases_computes_what_the_other_did(bias: bool) -> None:
    _, source = network(bias=bias)
    config, target = network(bias=not bias)
    weights = fitting_weights(source, layer_list(config))
    assert set(weights) == {variable.path for variable in target.variables}
    for variable in target.variables:
        variable.assign(weights[variable.path])
    pictures = np.random.default_rng(1).random((2, 16, 24, 3), np.float32)
    np.testing.assert_allclose(target(pictures), source(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_without_batch_norm_all_biases_stay(norm: str) -> None:
    config, source = network(bias=False, norm=norm)
    weights = fitting_weights(source, layer_list(config))
    assert len(weights) == len(source.variables)
    assert "down0_conv1/bias" in weights
