"""Models that are not ours: what their directories are, and how they are told languages and text."""
