"""Jobs as Kubernetes objects: Trainer's TrainJob, the training operator's older PyTorchJob, and Indexed Jobs.

Plain data in, plain data out; `mobileclip.kubeflow.cluster` sends them. Field names are those of
`trainer.kubeflow.org/v1alpha1` (Trainer 2.0 to 2.3) and `kubeflow.org/v1` (training operator 1.7 to 1.9). Both
operators set `PET_*` in the pods' environment, so `torchrun` finds its peers without flags.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["TrainJob", "PyTorchJob", "Job"]
Json = dict[str, Any]

DIGEST = "mobileclip/digest"
"""Annotation with the digest of what the job was made from."""
RUN_LABEL = "mobileclip/run"

PATCH_FORMS = ("runtimePatches", "podTemplateOverrides", "podSpecOverrides")
"""Where a TrainJob changes its runtime's pods: Trainer 2.2 and later, 2.1, 2.0. A server drops fields it does
not know without a word, so which one holds is asked of the server (`mobileclip.kubeflow.cluster.start`)."""

INDEX_FORMS = ("backoffLimitPerIndex", "podFailurePolicy", "completionMode")
"""What a server knows of Indexed Jobs: Kubernetes 1.29 and later, 1.26, 1.22. An older one drops the mode."""
_BAD_INPUT = 2  # exit code of a worker whose input is wrong: no other try mends it, nor does another index
_KEPT = 7 * 24 * 3600  # for which an ended Indexed Job is kept without an owner [s]

_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_POD_SECURITY = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


@dataclass(frozen=True)
class Api:
    """Where a kind of job is found, and how its pods are labelled.

    Attributes:
        group: API group.
        version: API version.
        plural: Resource name.
        pods: Label that names the job on its pods.
        first: Label and value by which the first node's pod is told from the others.
    """

    group: str
    version: str
    plural: str
    pods: str
    first: tuple[str, str]


APIS: dict[Kind, Api] = {
    "TrainJob": Api(
        "trainer.kubeflow.org", "v1alpha1", "trainjobs", "jobset.sigs.k8s.io/jobset-name",
        ("batch.kubernetes.io/job-completion-index", "0"),
    ),
    "PyTorchJob": Api(
        "kubeflow.org", "v1", "pytorchjobs", "training.kubeflow.org/job-name",
        ("training.kubeflow.org/replica-type", "master"),
    ),
    "Job": Api("batch", "v1", "jobs", "job-name", ("batch.kubernetes.io/job-completion-index", "0")),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What runs on how many nodes.

    Attributes:
        stage: Stage that the job computes; its name starts with it.
        image: Image of the nodes.
        command: Started once on every node, such as `torchrun -m ...`.
        nodes: Number of nodes; of an Indexed Job its indices.
        processes: Processes per node, one per accelerator.
        kind: Kind of the job.
        runtime: ClusterTrainingRuntime of a TrainJob; its replicated job and container are called `node`.
        deadline: Longest time of the job [s]; 0 = none.
        resources: Kubernetes `resources` of a node.
        env: Kubernetes `env` of a node.
        volumes: Kubernetes `volumes` of a node.
        volume_mounts: Kubernetes `volumeMounts` of a node.
        node_selector: Labels a node must have.
        tolerations: Kubernetes `tolerations`.
        affinity: Kubernetes `affinity`.
        labels: Labels of the job; they do not enter its name.
        parallel: Indices of an Indexed Job at once; 0 = all that the cluster has room for.
        retries: Further starts of each index of an Indexed Job.
    """

    stage: str
    image: str
    command: tuple[str, ...]
    nodes: int
    processes: int = 1
    kind: Kind = "TrainJob"
    runtime: str = "torch-distributed"
    deadline: int = 0
    resources: Mapping[str, Any] = field(default_factory=dict)
    env: Sequence[Json] = ()
    volumes: Sequence[Json] = ()
    volume_mounts: Sequence[Json] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Json] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    parallel: int = 0
    retries: int = 3

    @property
    def digest(self) -> str:
        """Digest of everything that changes what is computed, and on what."""
        parts = {key: value for key, value in asdict(self).items() if key != "labels"}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the object: equal for equal work, so that a restarted launcher finds the job it started."""
        return f"{self.stage.replace('_', '-')}-{self.digest[:12]}"

    @property
    def api(self) -> Api:
        """Where its kind is found."""
        return APIS[self.kind]


def render(job: Job, *, owner: Json | None = None, form: str = PATCH_FORMS[0]) -> Json:
    """The Kubernetes object of a job.

    Args:
        job: The job.
        owner: Owner reference; the job is deleted with its owner.
        form: One of `PATCH_FORMS` for a TrainJob, of `INDEX_FORMS` for an Indexed Job.
    """
    metadata: Json = {
        "name": job.name,
        "labels": {"app.kubernetes.io/part-of": "mobileclip-pipelines", **job.labels},
        "annotations": {DIGEST: job.digest},
    }
    if owner:
        metadata["ownerReferences"] = [owner]
    if job.kind == "Job":
        spec = _indexed_job(job, form if form in INDEX_FORMS else INDEX_FORMS[0])
    else:
        spec = _train_job(job, form) if job.kind == "TrainJob" else _pytorch_job(job)
    return {"apiVersion": f"{job.api.group}/{job.api.version}", "kind": job.kind, "metadata": metadata, "spec": spec}


def progress(job: Job, status: Mapping[str, Any]) -> str:
    """How far an Indexed Job is: `37 of 64 groups, 2 retried`; empty for other kinds."""
    if job.kind != "Job":
        return ""
    done, failed = int(status.get("succeeded") or 0), int(status.get("failed") or 0)
    lost = f", groups {status['failedIndexes']} lost" if status.get("failedIndexes") else ""
    return f"{done} of {job.nodes} groups" + (f", {failed} retried" if failed else "") + lost


def outcome(status: Mapping[str, Any]) -> tuple[str, str]:
    """How a job stands, from its status.

    Returns:
        `running`, `suspended`, `succeeded` or `failed`, and the reason the operator gives.
    """
    holds = {c["type"]: c for c in status.get("conditions") or [] if c.get("status") == "True"}
    states = {"failed": ("Failed",), "succeeded": ("Complete", "Succeeded"), "suspended": ("Suspended",)}
    for state, types in states.items():
        for condition in (holds[t] for t in types if t in holds):
            said = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            return state, said.strip(": ")
    return "running", ""


def _train_job(job: Job, form: str) -> Json:
    trainer: Json = {
        "image": job.image,
        "command": list(job.command),
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        "env": list(job.env),
    }
    if job.resources:
        trainer["resourcesPerNode"] = dict(job.resources)
    spec: Json = {"runtimeRef": {"name": job.runtime}, "trainer": trainer, form: [_PATCHES[form](_pod_patch(job))]}
    if job.deadline:
        spec["activeDeadlineSeconds"] = job.deadline
    return spec


def _pod_patch(job: Job) -> Json:
    container: Json = {"name": "node", "securityContext": _SECURITY}
    if job.volume_mounts:
        container["volumeMounts"] = list(job.volume_mounts)
    return {"securityContext": _POD_SECURITY, "containers": [container], **_placement(job)}


def _placement(job: Job) -> Json:
    found: Json = {
        "volumes": list(job.volumes),
        "nodeSelector": dict(job.node_selector),
        "tolerations": list(job.tolerations),
        "affinity": dict(job.affinity),
    }
    return {key: value for key, value in found.items() if value}


def _runtime_patch(pod: Json) -> Json:
    replicated = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    template = {"spec": {"replicatedJobs": [replicated]}}
    return {"manager": "mobileclip/launcher", "trainingRuntimeSpec": {"template": template}}


def _template_override(pod: Json) -> Json:
    return {"targetJobs": [{"name": "node"}], "spec": _without_security(pod)}


def _spec_override(pod: Json) -> Json:
    plain = {key: value for key, value in _without_security(pod).items() if key != "affinity"}
    return {"targetJobs": [{"name": "node"}], **plain}


def _without_security(pod: Json) -> Json:
    """Trainer 2.0 and 2.1 cannot change security contexts: there the runtime itself must set them."""
    containers = [{k: v for k, v in c.items() if k != "securityContext"} for c in pod["containers"]]
    return {**{k: v for k, v in pod.items() if k != "securityContext"}, "containers": containers}


_PATCHES = dict(zip(PATCH_FORMS, (_runtime_patch, _template_override, _spec_override), strict=True))


def _pytorch_job(job: Job) -> Json:
    container: Json = {
        "name": "pytorch",  # the operator looks for this name
        "image": job.image,
        "command": list(job.command),
        "env": list(job.env),
        "securityContext": _SECURITY,
    }
    for key, value in (("resources", dict(job.resources)), ("volumeMounts", list(job.volume_mounts))):
        if value:
            container[key] = value
    pod = {"securityContext": _POD_SECURITY, "containers": [container], **_placement(job)}
    template = {"metadata": {"annotations": {"sidecar.istio.io/inject": "false"}}, "spec": pod}
    replica = {"restartPolicy": "OnFailure", "template": template}
    replicas = {"Master": {**replica, "replicas": 1}}
    if job.nodes > 1:
        replicas["Worker"] = {**replica, "replicas": job.nodes - 1}
    policy: Json = {"cleanPodPolicy": "None", "backoffLimit": 3}
    if job.deadline:
        policy["activeDeadlineSeconds"] = job.deadline
    return {"nprocPerNode": str(job.processes), "pytorchReplicaSpecs": replicas, "runPolicy": policy}


def _indexed_job(job: Job, form: str) -> Json:
    """One index a group; the kubelet tells each pod its own as `JOB_COMPLETION_INDEX`.

    Evictions and preemptions are not counted against an index. Where the server has it, an index that fails too often
    ends itself alone, and wrong input ends the job at once.
    """
    container: Json = {
        "name": "group",
        "image": job.image,
        "command": list(job.command),
        "env": list(job.env),
        "securityContext": _SECURITY,
    }
    for key, value in (("resources", dict(job.resources)), ("volumeMounts", list(job.volume_mounts))):
        if value:
            container[key] = value
    pod = {
        "restartPolicy": "Never", "securityContext": _POD_SECURITY, "containers": [container], **_placement(job),
    }  # fmt: skip
    metadata: Json = {"annotations": {"sidecar.istio.io/inject": "false"}}
    if job.labels:
        metadata["labels"] = dict(job.labels)
    spec: Json = {
        "completionMode": "Indexed",
        "completions": job.nodes,
        "parallelism": min(job.nodes, job.parallel or job.nodes),
        "ttlSecondsAfterFinished": _KEPT,
        "template": {"metadata": metadata, "spec": pod},
    }
    if form == "backoffLimitPerIndex":
        spec["backoffLimitPerIndex"] = job.retries
    else:
        spec["backoffLimit"] = job.retries * job.nodes
    if form != "completionMode":
        spec["podFailurePolicy"] = {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [_BAD_INPUT]}},
        ]}  # fmt: skip
    if job.deadline:
        spec["activeDeadlineSeconds"] = job.deadline
    return spec
