"""Worked examples: each turns something real into the input of the first stage."""
