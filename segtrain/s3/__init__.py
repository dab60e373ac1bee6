"""Files in S3-compatible object storage; used through `segtrain.storage` only."""
