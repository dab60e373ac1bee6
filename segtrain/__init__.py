"""Distributed training of binary image-segmentation networks: Keras 3 on Ray, fed from sharded Parquet."""
