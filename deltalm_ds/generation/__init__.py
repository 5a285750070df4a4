"""From a source text to hypotheses: engines, beam search, scores."""
