"""BLEU during training: every rank translates its share of the validation sentences."""
