"""From a trained network and pictures to probabilities, masks, scores and submissions."""
