"""LiteRT programs: converted in an environment of their own, run here."""
