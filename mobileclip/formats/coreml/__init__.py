"""Core ML programs, and an interpreter that proves them on any machine."""
