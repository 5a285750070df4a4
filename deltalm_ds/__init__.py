"""DeltaLM-style multilingual sequence-to-sequence models under DeepSpeed."""

__version__ = "0.1.0"
