"""Ray actors that work through tasks, as many at once as the cluster holds."""
