"""A trained network on a picture: loading, the whole picture or tiles, export."""
