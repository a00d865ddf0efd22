"""A job as a component would describe it."""

import json
from dataclasses import replace

from mobileclip.kubeflow import launch

SETTINGS = {  # what Kubeflow hands a launcher as its TaskConfig
    "resources": {"limits": {"nvidia.com/gpu": "8", "cpu": "96"}, "requests": {"cpu": "96", "memory": "768Gi"}},
    "env": [
        {"name": "PLAIN", "value": "1"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "mobileclip", "key": "KEY", "optional": True}}},
        {"name": "KFP_RUN_ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['pipeline/runid']"}}},
    ],
    "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "mobileclip-data"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
    ],
    "volume_mounts": [{"name": "data", "mountPath": "/data"}, {"name": "shm", "mountPath": "/dev/shm"}],
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": None,
}


def make_job(kind="TrainJob", **changed):
    nodes = launch.Nodes(count=2, processes=8, image="registry/mobileclip@sha256:1", kind=kind, deadline=3600)
    return replace(launch.job("distill", json.dumps({"stage": "distill"}), nodes, SETTINGS), **changed)
