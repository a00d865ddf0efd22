"""Kubeflow components: one thin typed wrapper per stage around `mobileclip.entry.run_stage`."""
