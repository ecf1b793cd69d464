"""Distributed training of the network that turns a rough line drawing of a face into a pencil portrait."""

__version__ = "0.1.0"
