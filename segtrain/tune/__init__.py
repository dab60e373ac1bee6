"""Sweeps: many runs of one recipe, each with another point of a search space put in."""
