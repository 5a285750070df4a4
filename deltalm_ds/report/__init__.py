"""Pages about runs: charts, tables, sample translations in one file."""
