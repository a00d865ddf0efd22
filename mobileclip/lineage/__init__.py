"""From a file back to where it came from, and what its licenses allow."""
