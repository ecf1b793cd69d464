"""What all other packages stand on: errors, files, the configuration, the ranks, signals, arithmetic."""
