"""The two networks, their losses, and their weights on disk."""
