"""What a run is: its schema, read, checked and described. Schedules are here too."""
