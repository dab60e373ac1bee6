"""Networks as lists of layers."""
