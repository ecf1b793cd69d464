"""One training run: the step, the policy of conditional training, the loop."""
