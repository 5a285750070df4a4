"""Models behind HTTP: an API of our own, LibreTranslate's, and a page. Only `deltalm serve` imports it."""
