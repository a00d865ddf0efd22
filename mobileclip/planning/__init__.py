"""Cost of a reinforced dataset, by the papers' rates or measured on this machine."""
