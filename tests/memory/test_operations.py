"""The lists of operations against published parameter counts and the networks that are really built."""

import keras
import numpy as np
import pytest

from segtrain.config import FCNConfig, Model, UNetConfig
from segtrain.memory import parameters
from segtrain.memory.kernels import DNN
from segtrain.memory.operations import OperationList, network
from segtrain.models import build_model

NETWORKS = [
    UNetConfig(filters=2, depth=2, norm="synchronized", dropout=0.1),
    UNetConfig(filters=2, depth=2, norm="none", down="strided", up="resize", convolutions=1),
    UNetConfig(filters=4, depth=1, norm="group", norm_groups=2, residual=True, up="transpose_2x2"),
    UNetConfig(filters=2, depth=1, norm="batch", residual=True, down="strided", convolutions=3),
    FCNConfig(filters=2, depth=2),
]


def listed(config: Model, height: int, width: int) -> OperationList:
    return network(config, batch=1, height=height, width=width, channels=3, precision="float32", kernels=DNN)


@pytest.mark.parametrize(
    ("filters", "depth", "expected"),
    [
        (8, 4, 540_217),
        (16, 4, 2_158_705),
        (32, 4, 8_630_497),
        (64, 2, 2_067_649),
        (64, 3, 8_557_505),
        (64, 4, 34_513_345),
        (64, 5, 138_329_537),
    ],
)
def test_parameters_are_those_that_were_worked_out_by_hand(filters: int, depth: int, expected: int) -> None:
    assert parameters(UNetConfig(filters=filters, depth=depth, norm="none")) == expected


def test_parameters_are_those_that_a_published_network_prints() -> None:
    assert parameters(UNetConfig(filters=64, depth=4, norm="none", up="transpose_2x2")) == 31_031_745


def test_batch_norm_has_parameters_to_train_and_as_many_statistics() -> None:
    config = UNetConfig(filters=64, depth=4, norm="batch")
    assert parameters(config) == 34_525_121
    assert parameters(config) + listed(config, 16, 16).moving == 34_536_897


@pytest.mark.parametrize("config", NETWORKS)
def test_parameters_and_the_sizes_of_all_layers_are_those_of_the_built_network(config: Model) -> None:
    model = build_model(config)
    size = (21, 30)  # neither a multiple of 2**depth: the network pads and crops
    net = listed(config, *size)
    assert net.trainable == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert net.moving == sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    results = keras.Model(model.input, [layer.output for layer in layers])(np.zeros((1, *size, 3), np.float32))
    built = {layer.name: tuple(result.shape) for layer, result in zip(layers, results, strict=True)}
    sizes = {
        operation.name: (1, operation.output.height, operation.output.width, operation.output.channels)
        for operation in net.operations
    }
    assert built.items() <= sizes.items()
