"""Data sets: raw pictures in, checked shards out, and back again as batches."""
