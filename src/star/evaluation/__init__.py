"""Evaluation: draws what a protocol asks for, scores it, and writes cards and a report."""
