"""Runs in MLflow. The only package that imports it, with the served model in `promotion`."""
