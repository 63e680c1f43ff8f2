"""Maintenance of the notebooks and of the built site."""
