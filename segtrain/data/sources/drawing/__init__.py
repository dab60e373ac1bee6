"""Drawn cars in drawn studios, NumPy and Pillow only: what source `synthetic` writes to disk."""
