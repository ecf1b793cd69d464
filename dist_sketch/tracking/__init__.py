"""What a job records about itself: metrics.jsonl, status.json, Weights & Biases."""
