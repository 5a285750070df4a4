"""The model: its sizes, its layers on packed sequences, its caches for decoding."""
