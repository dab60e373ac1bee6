"""What every network promises, and the parameter counts of the U-Net."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from segtrain.config import FCNConfig, UNetConfig
from segtrain.models import build_model
from segtrain.models.step_context import forward_pass

FAMILY = {
    "plain": UNetConfig(filters=4, depth=2, norm="none"),
    "synchronized": UNetConfig(filters=4, depth=2, dropout=0.2),
    "batch": UNetConfig(filters=4, depth=3, norm="batch", up="transpose_2x2", convolutions=1),
    "residual": UNetConfig(
        filters=4,
        depth=2,
        norm="group",
        norm_groups=2,
        down="strided",
        up="resize",
        residual=True,
        dropout=(0, 0.1, 0.5),
    ),
    "fcn": FCNConfig(filters=4, depth=2),
}
each_model = pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
KERNELS = ("Conv2D", "Conv2DTranspose")


def pictures(height, width, count=2):
    return np.random.default_rng(0).random((count, height, width, 3), np.float32)


@each_model
@pytest.mark.parametrize("size", [(32, 48), (40, 59), (19, 12), (3, 5), (1, 1)])
def test_logits_have_the_size_of_the_picture(config, size):
    assert build_model(config)(pictures(*size)).shape == (2, *size, 1)


@each_model
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_logits_are_float32_under_mixed_precision_and_float64_under_float64(config, policy):
    model = build_model(config, dtype_policy=policy)
    logits = model(pictures(10, 13))
    assert logits.dtype == ("float64" if policy == "float64" else "float32")
    assert np.isfinite(logits).all()
    computed_in = {layer.compute_dtype for layer in model.layers if type(layer).__name__ in KERNELS[1:]}
    assert computed_in <= {policy.removeprefix("mixed_")}


@each_model
def test_precision_changes_rounding_alone(config):
    wide, narrow = (build_model(config, dtype_policy=policy) for policy in ("float64", "mixed_float16"))
    narrow.set_weights(wide.get_weights())
    np.testing.assert_allclose(wide(pictures(9, 12)), narrow(pictures(9, 12)), atol=0.05)


@each_model
def test_the_seed_decides_the_weights(config):
    first, same, other = (build_model(config, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kernels = [variable.path for variable in first.trainable_variables if variable.path.endswith("kernel")]
    values = [{variable.path: np.asarray(variable) for variable in model.variables} for model in (first, other)]
    assert all((values[0][path] != values[1][path]).all() for path in kernels)


@each_model
def test_a_saved_model_loads_with_equal_outputs(config, tmp_path):
    model = build_model(config, seed=3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = pictures(10, 13)
    np.testing.assert_array_equal(model(x), loaded(x))


@each_model
def test_gradients_reach_every_weight(config):
    model = build_model(config, dtype_policy="float64")
    facts = {"step": tf.constant(0, tf.int64), "keys": tf.constant([1, 2], tf.int64), "weights": tf.ones(2)}
    with forward_pass(**facts), tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(pictures(20, 27), training=True) - 1.0))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        if variable.path.endswith("kernel"):  # a bias before batch norm has no effect, hence no gradient
            assert np.abs(gradient).max() > 0, variable.path


@each_model
def test_a_pictures_logits_do_not_depend_on_the_rest_of_its_batch(config):
    model, x = build_model(config), pictures(16, 20)
    np.testing.assert_allclose(model(x)[:1], model(x[:1]), atol=1e-5)


@each_model
def test_an_odd_size_is_the_middle_of_the_mirrored_picture(config):
    model, x = build_model(config), pictures(30, 30)
    mirrored = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")
    np.testing.assert_allclose(model(x), model(mirrored)[:, 1:-1, 1:-1], atol=1e-5)


def test_kernels_are_he_normal():
    model = build_model(UNetConfig(filters=16, depth=2))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.name != "logits":
            height, width, channels, _ = layer.kernel.shape
            assert np.std(layer.kernel) == pytest.approx(np.sqrt(2 / (height * width * channels)), rel=0.1)
            if layer.use_bias:
                np.testing.assert_array_equal(layer.bias, 0.0)


def test_dropout_rates_are_one_a_level():
    model = build_model(FAMILY["residual"])
    rates = {layer.name: layer.rate for layer in model.layers if hasattr(layer, "rate")}
    assert rates == {"down1_dropout": 0.1, "bottom_dropout": 0.5, "up1_dropout": 0.1}


def test_dropout_layers_draw_apart():
    model = build_model(UNetConfig(filters=4, depth=3, dropout=0.1))
    indices = [layer.layer_index for layer in model.layers if hasattr(layer, "rate")]
    assert len(indices) == len(set(indices)) == 7


def parameters(config):
    """(trainable, all), from shapes alone: the largest network would take 553 MB."""
    with keras.StatelessScope(initialize_variables=False):
        model = build_model(config)
    count = [sum(int(np.prod(v.shape)) for v in group) for group in (model.trainable_variables, model.variables)]
    return tuple(count)


@pytest.mark.parametrize(
    ("filters", "depth", "up", "count"),
    [
        (64, 4, "transpose_3x3", 34_513_345),
        (64, 4, "transpose_2x2", 31_031_745),
        (8, 4, "transpose_3x3", 540_217),
        (16, 4, "transpose_3x3", 2_158_705),
        (32, 4, "transpose_3x3", 8_630_497),
        (64, 2, "transpose_3x3", 2_067_649),
        (64, 3, "transpose_3x3", 8_557_505),
        (64, 5, "transpose_3x3", 138_329_537),
    ],
)
def test_the_unet_has_the_published_number_of_parameters(filters, depth, up, count):
    config = UNetConfig(filters=filters, depth=depth, up=up, norm="none")
    assert parameters(config) == (count, count)


@pytest.mark.parametrize("norm", ["batch", "synchronized"])
def test_batch_norm_adds_two_trained_and_two_moving_numbers_a_channel(norm):
    assert parameters(UNetConfig(filters=64, norm=norm)) == (34_519_233, 34_531_009)
