"""CustomResourceDefinitions for the tests, from the operators' published models (`kubeflow-trainer-api`).

What a job may hold is therefore what Kubeflow Trainer 2.3 says; the older places for changes of pods (2.1, 2.0) and the
PyTorchJob around its pod template are written after their reference.
"""

import copy

from kubeflow_trainer_api.models.io_k8s_api_core_v1_pod_template_spec import IoK8sApiCoreV1PodTemplateSpec
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

_NUMBER_OR_TEXT = {"x-kubernetes-int-or-string": True}
_ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_WRAPPED = ("IoK8sApimachineryPkgApiResourceQuantity", "IoK8sApimachineryPkgUtilIntstrIntOrString")
_TARGETS = {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}}


def train_job(form="runtimePatches"):
    """TrainJob of the Trainer that changes pods by `form`."""
    schema = _structural(TrainerV1alpha1TrainJob)
    spec = schema["properties"]["spec"]["properties"]
    patches = spec.pop("runtimePatches")
    pod = copy.deepcopy(_find(patches, "nodeSelector"))
    if form == "runtimePatches":
        spec[form] = patches
    else:
        del spec["activeDeadlineSeconds"]
        del pod["securityContext"], pod["containers"]["items"]["properties"]["securityContext"]
        inside = {"targetJobs": _TARGETS, "spec": {"type": "object", "properties": pod}}
        if form == "podSpecOverrides":
            del pod["affinity"]
            inside = {"targetJobs": _TARGETS, **pod}
        spec[form] = {"type": "array", "items": {"type": "object", "required": ["targetJobs"], "properties": inside}}
    return _definition("trainer.kubeflow.org", "v1alpha1", "TrainJob", schema)


def pytorch_job():
    """PyTorchJob of the training operator 1.9."""
    pod = _structural(IoK8sApiCoreV1PodTemplateSpec)
    replica = {
        "type": "object",
        "properties": {
            "replicas": {"type": "integer"},
            "restartPolicy": {"type": "string", "enum": ["Always", "OnFailure", "Never", "ExitCode"]},
            "template": pod,
        },
    }
    policy = {
        "cleanPodPolicy": {"type": "string"}, "backoffLimit": {"type": "integer"},
        "activeDeadlineSeconds": {"type": "integer"}, "ttlSecondsAfterFinished": {"type": "integer"},
    }  # fmt: skip
    spec = {
        "type": "object",
        "required": ["pytorchReplicaSpecs"],
        "properties": {
            "nprocPerNode": {"type": "string"},
            "pytorchReplicaSpecs": {"type": "object", "additionalProperties": replica},
            "runPolicy": {"type": "object", "properties": policy},
        },
    }
    return _definition(
        "kubeflow.org", "v1", "PyTorchJob", {"type": "object", "properties": {"spec": spec, "status": _ANYTHING}}
    )


def workflow():
    """Argo's Workflow, of which only a few fields are read."""
    return _definition(
        "argoproj.io",
        "v1alpha1",
        "Workflow",
        {"type": "object", "properties": {"spec": _ANYTHING, "status": _ANYTHING}},
        status=False,
    )


def _definition(group, version, kind, schema, *, status=True):
    plural = f"{kind.lower()}s"
    schema["properties"].pop("metadata", None)
    entry = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if status:
        entry["subresources"] = {"status": {}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [entry]},
    }


def _structural(model):
    """A pydantic model as a structural schema: references resolved, optional fields without their null."""
    schema = model.model_json_schema(by_alias=True)
    return _resolve(schema, schema["$defs"])


def _resolve(part, known):
    if "$ref" in part:
        name = part["$ref"].rsplit("/", 1)[1]
        return dict(_NUMBER_OR_TEXT) if name in _WRAPPED else _resolve(known[name], known)
    if "anyOf" in part:
        (kept,) = (option for option in part["anyOf"] if option.get("type") != "null")
        return _resolve(kept, known)
    kind = part.get("type")
    if kind == "object" and "properties" in part:
        inside = {name: _resolve(value, known) for name, value in part["properties"].items()}
        found = {"type": "object", "properties": inside}
        if part.get("required"):
            found["required"] = part["required"]
        return found
    if kind == "object" and isinstance(part.get("additionalProperties"), dict):
        return {"type": "object", "additionalProperties": _resolve(part["additionalProperties"], known)}
    if kind == "array":
        return {"type": "array", "items": _resolve(part["items"], known)}
    if kind in {"string", "integer", "number", "boolean"}:
        return {"type": kind}
    return dict(_ANYTHING)


def _find(part, name):
    """The properties among which one of that name stands."""
    if isinstance(part, dict):
        if name in part.get("properties", {}):
            return part["properties"]
        for value in part.values():
            if (found := _find(value, name)) is not None:
                return found
    return None
