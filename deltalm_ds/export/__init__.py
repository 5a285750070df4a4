"""Models in other engines' formats, each read back and compared before it appears."""
