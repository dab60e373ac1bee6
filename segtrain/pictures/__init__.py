"""Files of pictures and masks: what they are, and whether the decoder that trains takes them."""
