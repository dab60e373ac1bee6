"""The stored data set: manifest, shards, reader, node cache, versions, verify, describe."""
