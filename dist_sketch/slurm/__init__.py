"""The same work on a SLURM cluster: submit, run, requeue, explain."""
