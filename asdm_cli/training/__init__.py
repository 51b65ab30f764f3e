"""Training: data, losses and the one loop."""
