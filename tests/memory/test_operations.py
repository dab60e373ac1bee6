"""The lists of operations against published parameter counts and the networks that are really built."""

from collections.abc import Callable
from itertools import groupby
from types import ModuleType
from typing import get_args

import keras
import numpy as np
import pytest

from segtrain.architectures.layer_list import layer_list
from segtrain.architectures.layer_records import Kind, LayerRecord
from segtrain.config import FCNConfig, Model, UNetConfig
from segtrain.memory import operations, parameters
from segtrain.memory.kernels import DNN
from segtrain.memory.operations import OperationList, network
from segtrain.models import build, build_model
from segtrain.models.rematerialize import Rematerialized

NETWORKS = [
    UNetConfig(filters=2, depth=2, norm="synchronized", dropout=0.1),
    UNetConfig(filters=2, depth=2, norm="none", down="strided", up="resize", convolutions=1),
    UNetConfig(filters=4, depth=1, norm="group", norm_groups=2, residual=True, up="transpose_2x2"),
    UNetConfig(filters=2, depth=1, norm="batch", residual=True, down="strided", convolutions=3),
    UNetConfig(filters=3, depth=1, norm="none", residual=True, convolutions=1),  # the picture has 3 channels already
    UNetConfig(filters=2, depth=3, dropout=(0.0, 0.1, 0.0, 0.5), norm="batch", convolutions=1, up="resize"),
    UNetConfig(filters=2, depth=2, norm="group", norm_groups=1, convolutions=3, down="strided", up="transpose_2x2"),
    FCNConfig(filters=2, depth=2),
]
U_NETS = [config for config in NETWORKS if isinstance(config, UNetConfig)]
SIZE = (21, 30)
"""Neither is a multiple of `2**depth`: the network pads and crops."""


def listed(config: Model, height: int, width: int, precision: str = "float32") -> OperationList:
    return network(config, batch=1, height=height, width=width, channels=3, precision=precision, kernels=DNN)


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
    assert parameters(config) == 34_519_233  # of 5,888 channels, none has a bias
    assert parameters(config) + listed(config, 16, 16).moving == 34_531_009


def test_a_network_from_before_biases_were_left_out_has_them() -> None:
    assert parameters(UNetConfig(filters=64, depth=4, norm="batch", bias_before_norm=True)) == 34_525_121


@pytest.mark.parametrize("precision", ["float32", "float64", "mixed_float16"])
@pytest.mark.parametrize("config", NETWORKS)
def test_parameters_and_the_sizes_of_all_layers_are_those_of_the_built_network(config: Model, precision: str) -> None:
    model = build_model(config, dtype_policy=precision)
    net = listed(config, *SIZE, precision)
    assert net.trainable == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert net.moving == sum(int(np.prod(weight.shape)) for weight in model.non_trainable_weights)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    results = keras.Model(model.input, [layer.output for layer in layers])(np.zeros((1, *SIZE, 3), np.float32))
    built = {layer.name: (*result.shape, result.dtype.size) for layer, result in zip(layers, results, strict=True)}
    outputs = [operation.output for operation in net.operations]
    sizes = {x.name: (1, x.height, x.width, x.channels, x.itemsize) for x in outputs}
    assert built.items() <= sizes.items()


@pytest.mark.parametrize("config", U_NETS)
def test_what_is_computed_again_as_one_is_the_same_in_the_built_network(config: UNetConfig) -> None:
    model = build_model(config, rematerialize=True)
    built = [
        {layer.name for layer in again.part.layers if not isinstance(layer, keras.layers.InputLayer)}
        for again in model.layers
        if isinstance(again, Rematerialized)
    ]
    parts = groupby(listed(config, *SIZE).operations, key=lambda operation: operation.part)
    assert built == [{operation.output.name for operation in part} for name, part in parts if name]


def test_the_networks_compared_here_have_every_kind_of_layer() -> None:
    assert {type(layer.kind) for config in NETWORKS for layer in layer_list(config, 3)} == set(get_args(Kind))


class Unheard:
    """A kind of layer that nobody reads."""


@pytest.mark.parametrize(
    ("module", "read", "refusal"),
    [
        (build, lambda: build_model(NETWORKS[0]), "new: segtrain.models.build has no Keras layer for Unheard"),
        (operations, lambda: parameters(NETWORKS[0]), "new: segtrain.memory.operations has no bytes for Unheard"),
    ],
)
def test_a_kind_of_layer_without_a_reader_is_refused(
    module: ModuleType, read: Callable[[], object], refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [*layer_list(NETWORKS[0], 3), LayerRecord("new", Unheard(), ("crop",))]  # type: ignore[arg-type]
    monkeypatch.setattr(module, "layer_list", lambda config, channels: layers)
    with pytest.raises(TypeError, match=f"^{refusal}$"):
        read()
