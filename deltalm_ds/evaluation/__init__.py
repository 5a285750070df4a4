"""Test sets translated and scored."""
