"""The DataComp suite: 40 tasks, their data, scores and tables."""
