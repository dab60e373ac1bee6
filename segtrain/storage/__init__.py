"""A path or an s3:// URL to bytes, and the folders for temporary files."""
