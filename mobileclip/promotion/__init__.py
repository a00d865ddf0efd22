"""From a student with its evidence to a champion: gates, registry and the log that decides."""
