"""Drawn cars in a drawn room, for data that needs no download."""
