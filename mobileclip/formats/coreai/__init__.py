"""Core AI programs: written and run in an environment of their own."""
