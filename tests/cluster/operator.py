"""What a cluster's controllers do to a job's objects, done by hand: pods, their states, the job's conditions."""

import time
from datetime import UTC, datetime

from kubernetes import client, config, utils


class Operator:
    """An administrator."""

    def __init__(self, server):
        settings = client.Configuration()
        config.load_kube_config(server["kubeconfig"], client_configuration=settings)
        self.api, self.server, self.logs = client.ApiClient(settings), server, server["logs"]
        self.core, self.objects = client.CoreV1Api(self.api), client.CustomObjectsApi(self.api)

    def install(self, definition):
        """Create or replace a CustomResourceDefinition and wait until it is served."""
        definitions, name = client.ApiextensionsV1Api(self.api), definition["metadata"]["name"]
        try:
            definitions.create_custom_resource_definition(definition)
        except client.ApiException as error:
            if error.status != 409:
                raise
            held = definitions.read_custom_resource_definition(name)
            definition["metadata"]["resourceVersion"] = held.metadata.resource_version
            definitions.replace_custom_resource_definition(name, definition)
        for _ in range(100):
            found = definitions.read_custom_resource_definition_status(name)
            if any(c.type == "Established" and c.status == "True" for c in found.status.conditions or []):
                break
            time.sleep(0.1)
        time.sleep(1.0)  # handlers take a moment to know the new schema

    def add_node(self):
        """A node whose kubelet is the server of logs."""
        self.core.create_node({"metadata": {"name": "node"}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.server["port"]}},
        }
        self.core.patch_node_status("node", {"status": status})

    def add_namespace(self, name):
        """A namespace with the account its pods run under."""
        self.core.create_namespace({"metadata": {"name": name}})
        for account in ("default", "pipeline-runner"):
            body = {"metadata": {"name": account}, "automountServiceAccountToken": False}
            self.core.create_namespaced_service_account(name, body)
        return name

    def apply(self, objects, namespace):
        """Create objects; those that are there already stay."""
        for body in objects:
            try:
                utils.create_from_dict(self.api, body, namespace=namespace)
            except utils.FailToCreateError as error:
                if any(each.status != 409 for each in error.api_exceptions):
                    raise

    def token(self, namespace, account):
        """A kubeconfig with the rights of a service account."""
        body = {"spec": {"audiences": ["https://kubernetes.default.svc"]}}
        found = self.core.create_namespaced_service_account_token(account, namespace, body)
        settings = client.Configuration(host=self.api.configuration.host)
        settings.ssl_ca_cert = self.api.configuration.ssl_ca_cert
        settings.api_key = {"authorization": f"Bearer {found.status.token}"}
        settings.retries = 0
        return client.ApiClient(settings)

    def job(self, namespace, job):
        """The job's object; None where there is none."""
        try:
            return self.objects.get_namespaced_custom_object(
                job.api.group, job.api.version, namespace, job.api.plural, job.name
            )
        except client.ApiException as error:
            if error.status == 404:
                return None
            raise

    def jobs(self, namespace, job):
        """All jobs of that kind."""
        found = self.objects.list_namespaced_custom_object(job.api.group, job.api.version, namespace, job.api.plural)
        return found["items"]

    def end(self, namespace, job, kind, reason="Reason", message="message"):
        """Set a condition of the job."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        row = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
        self.objects.patch_namespaced_custom_object_status(
            job.api.group, job.api.version, namespace, job.api.plural, job.name, {"status": {"conditions": [row]}}
        )

    def add_pod(self, namespace, job, index=0):
        """A pod of the job, bound to the node; returns its name."""
        name = f"{job.name}-{index}"
        labels = {job.api.pods: job.name, "batch.kubernetes.io/job-completion-index": str(index)}
        labels["training.kubeflow.org/replica-type"] = "worker" if index else "master"
        spec = {
            "nodeName": "node", "automountServiceAccountToken": False,
            "containers": [{"name": "node", "image": job.image}],
        }  # fmt: skip
        self.core.create_namespaced_pod(namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        return name

    def set_pod(self, namespace, name, phase, state):
        """Set what a pod's container does."""
        status = {"name": "node", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        body = {"status": {"phase": phase, "containerStatuses": [status]}}
        self.core.patch_namespaced_pod_status(name, namespace, body)

    def run_pod(self, namespace, name):
        """A pod starts."""
        self.set_pod(namespace, name, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})

    def say(self, name, *lines):
        """Lines of a pod's log."""
        for line in lines:
            time.sleep(0.001)
            self.logs.setdefault(name, []).append((time.time(), line))

    def collect(self, namespace, job):
        """Let go of a job that is being deleted, as the garbage collector does once its pods are gone."""
        found = self.job(namespace, job)
        if found and found["metadata"].get("deletionTimestamp"):
            self.objects.patch_namespaced_custom_object(
                job.api.group, job.api.version, namespace, job.api.plural, job.name, {"metadata": {"finalizers": None}}
            )
