"""Measurements of single claims, each a command: `python -m star.studies.NAME`."""
