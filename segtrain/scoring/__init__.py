"""A trained network's scores on the pictures of a fold."""
