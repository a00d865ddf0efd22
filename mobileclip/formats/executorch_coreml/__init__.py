"""ExecuTorch programs for its Core ML delegate, proved from the payload."""
