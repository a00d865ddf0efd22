"""Latency, memory and scores of exported programs."""
