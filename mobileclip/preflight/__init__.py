"""What cannot work, found in seconds and all at once, before anything is trained. `sections` alone loads no torch."""
