"""Arrays without torch: ragged rows, randomness computed from counters, files seen as arrays. numpy only."""
