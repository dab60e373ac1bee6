"""Networks: lists of layers that need no TensorFlow, and the Keras models that are built from them."""
