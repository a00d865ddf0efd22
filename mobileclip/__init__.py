"""MobileCLIP Pipelines: train, ship and promote mobile CLIP models."""

__version__ = "0.1.0"
