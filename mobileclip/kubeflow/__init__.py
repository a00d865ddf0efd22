"""What runs inside Kubeflow: artifacts, launches, jobs, logs. The only package that imports kubernetes."""
