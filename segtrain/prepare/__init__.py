"""Raw pictures into shards: sources, checks, folds, writing."""
