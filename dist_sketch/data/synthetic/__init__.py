"""Procedural portraits: a data set for those who have none at hand."""
