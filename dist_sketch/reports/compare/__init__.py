"""Several runs or outputs side by side on one page."""
