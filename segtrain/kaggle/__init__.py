"""The competition's client, and submitting to it."""
