"""Phone programs: writing them, running them, proving them."""
