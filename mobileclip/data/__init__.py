"""Shards, columns, views and loading."""
