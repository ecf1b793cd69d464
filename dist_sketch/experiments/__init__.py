"""Many trainings from one file, and whether the claims about them hold."""
