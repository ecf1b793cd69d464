"""Measures this machine: each figure stands beside a baseline from the same call."""
