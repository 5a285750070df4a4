"""Model directories and foreign checkpoints: recognised, read, initialised from, averaged, described."""
