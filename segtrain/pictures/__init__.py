"""Files of pictures and masks: their kinds, and whether the decoder used in training reads them."""
