"""Kubeflow pipelines: wiring of components after `mobileclip.chain.CHAIN`, and the commands that compile and run it."""
