"""Predicted bytes on a device, by kind: arithmetic over the settings, without TensorFlow."""

from dataclasses import replace

from segtrain.config import AdamConfig, AdamWConfig, Model, Optimizer, Recipe, RMSpropConfig
from segtrain.config.batch_split import FORWARDED_BATCHES, PLACED_BATCHES
from segtrain.memory.kernels import DNN, FLOAT32, Kernels, Tensor, cpu_kernels
from segtrain.memory.liveness import Footprint, Pass
from segtrain.memory.operations import Operation, network

CHANNELS = 3
MASK_MAPS = 3
"""Maps of the logits' size that the loss works with at once: probabilities, their products, a term of the entropy."""
UPDATE_COPIES, EMA_COPIES = 3, 2
"""Copies of all weights that the update works with: TensorFlow begins that of every variable before it ends that of
one. For Adam's moments and step, and for the two addends of the moving average."""


def parameters(model: Model, channels: int = CHANNELS) -> int:
    """Trainable parameters of the network that `segtrain.models.build.build_model(model)` builds."""
    return network(model, batch=1, height=8, width=8, channels=channels, precision="float32", kernels=DNN).trainable


def training_footprint(
    recipe: Recipe, *, batch: int, rematerialize: bool, height: int, width: int, accumulation: int = 1
) -> Footprint:
    """The fullest moment of one training step.

    The step is on `accumulation` times `batch` pictures (height, width), one batch after another.
    """
    kernels, precision = kernels_of(recipe), recipe.train.precision
    net = network(
        recipe.model,
        batch=batch,
        height=height,
        width=width,
        channels=CHANNELS,
        precision=precision,
        kernels=kernels,
    )
    wide = net.picture.itemsize
    masks = Tensor("masks", batch, height, width, 1, wide)
    once = net.trainable * wide
    ema = recipe.train.ema_momentum is not None
    summed = once if accumulation > 1 else 0
    step = Pass([*net.operations, _loss(net.operations[-1].output, masks)], [net.picture, masks], gradient_bytes=wide)
    update = Footprint(gradients=once - summed, workspace=(UPDATE_COPIES + EMA_COPIES * ema) * once)
    fullest = max(step.train(rematerialize=rematerialize), update, key=lambda moment: moment.total)
    return replace(
        fullest,
        weights=(net.trainable + net.moving) * wide,
        gradients=fullest.gradients + summed,
        optimizer=once * slots(recipe.optimizer),
        ema=once * ema,
        workspace=fullest.workspace + int(kernels.gaps * fullest.total),
        pictures=fullest.pictures + (1 + PLACED_BATCHES) * batch * accumulation * height * width * (CHANNELS + 1),
    )


def inference_footprint(
    model: Model, height: int, width: int, *, batch: int, precision: str = "float32", kernels: Kernels = DNN
) -> Footprint:
    """Of a forward pass over `batch` pictures (height, width): the largest set of tensors that live together."""
    net = network(
        model, batch=batch, height=height, width=width, channels=CHANNELS, precision=precision, kernels=kernels
    )
    fullest = Pass(net.operations, [net.picture], gradient_bytes=0).infer()
    return replace(
        fullest,
        weights=(net.trainable + net.moving) * net.picture.itemsize,
        workspace=fullest.workspace + int(kernels.forward_gaps * fullest.total),
        pictures=fullest.pictures + batch * height * width * CHANNELS,
    )


def evaluation_footprint(recipe: Recipe, height: int, width: int, *, batch: int) -> Footprint:
    """Of scoring `batch` pictures (height, width) at once, while `FORWARDED_BATCHES` more lie there with logits.

    The sums that follow the forward pass take less than it does.
    """
    precision, kernels = recipe.train.precision, kernels_of(recipe)
    forward = inference_footprint(recipe.model, height, width, batch=batch, precision=precision, kernels=kernels)
    ahead = FORWARDED_BATCHES * (CHANNELS + 1 + FLOAT32)
    return replace(forward, pictures=forward.pictures + (1 + ahead) * batch * height * width)


def kernels_of(recipe: Recipe) -> Kernels:
    """The kernels that compute a run: those of GPUs, or of a CPU like this machine's."""
    return DNN if recipe.cluster.gpus_per_worker else cpu_kernels(recipe.train.precision)


def slots(optimizer: Optimizer) -> int:
    """Numbers that the optimizer keeps for each parameter, at most: what `FusedUpdate` needs."""
    if isinstance(optimizer, AdamConfig | AdamWConfig):
        return 3 if optimizer.amsgrad else 2
    if isinstance(optimizer, RMSpropConfig):
        return 2 + optimizer.centered  # also without momentum: the kernel wants a slot for it
    return int(optimizer.momentum > 0)


def _loss(logits: Tensor, masks: Tensor) -> Operation:
    """From logits and masks to one number; its gradient starts from the probabilities."""
    probability = Tensor("probability", masks.batch, masks.height, masks.width, 1, masks.itemsize)
    scratch = MASK_MAPS * masks.bytes
    return Operation(
        (logits,),
        Tensor("loss", 1, 1, 1, 1, masks.itemsize),
        keeps=(logits, masks, probability),
        forward_scratch=scratch,
        backward_scratch=scratch,
    )
