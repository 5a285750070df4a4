"""What a run directory holds, read without training anything: checkpoints, metrics, events."""
