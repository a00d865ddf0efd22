"""Architectures: what open_clip and timm ship, and the few that are ours."""
