"""One file per stage, one public `run` each; a stage never imports another."""
