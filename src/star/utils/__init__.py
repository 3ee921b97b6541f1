"""Command line, instantiation, logging."""
