"""A run, from its checked inputs to its last checkpoint, under DeepSpeed."""
