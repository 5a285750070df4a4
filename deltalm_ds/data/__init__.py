"""From shards of token ids to the micro-batches of a step: mixture, sampling, objectives, collation."""
