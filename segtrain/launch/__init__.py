"""A recipe becomes a run: groups of workers, one after the other."""
