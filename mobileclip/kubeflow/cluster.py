"""Jobs on a Kubernetes cluster: start once, follow, go on after the launcher's restart, cancel, say what failed.

The only module that imports the Kubernetes client. Jobs are described in `mobileclip.kubeflow.jobs`; their names are
digests of their content, so starting is idempotent. The rights it needs are those of `deploy/rbac.yaml`.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from mobileclip.errors import ConfigError, MobileClipError
from mobileclip.kubeflow.jobs import DIGEST, INDEX_FORMS, PATCH_FORMS, Job, Json, outcome, progress, render
from mobileclip.kubeflow.logs import Tail, last_words

logger = logging.getLogger(__name__)

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")
_PATIENCE = 300.0  # time for which an API server may be away while a job runs [s]


@dataclass(frozen=True)
class Cluster:
    """A connection.

    Attributes:
        api: Client.
        namespace: Where jobs are started.
        workflow: Argo Workflow of the pipeline run that this process is a part of; empty = none.
        poll: Time between two looks at a job [s].
    """

    api: client.ApiClient
    namespace: str
    workflow: str = ""
    poll: float = 5.0

    @property
    def objects(self) -> client.CustomObjectsApi:
        """Client of custom resources."""
        return client.CustomObjectsApi(self.api)

    @property
    def core(self) -> client.CoreV1Api:
        """Client of pods."""
        return client.CoreV1Api(self.api)


class _Terminated(BaseException):
    """SIGTERM, as an exception that no handler of ordinary errors swallows."""


def connect(*, kubeconfig: str = "", namespace: str = "", workflow: str = "", poll: float = 5.0) -> Cluster:
    """Connect with the pod's own service account, or with a kubeconfig.

    Args:
        kubeconfig: Path; empty = the pod's service account.
        namespace: Empty = the pod's own, else `default`.
        workflow: Argo Workflow of the pipeline run; empty = none.
        poll: Time between two looks at a job [s].

    Raises:
        ConfigError: There is no cluster here.
    """
    settings = client.Configuration()
    try:
        if kubeconfig:
            config.load_kube_config(kubeconfig, client_configuration=settings)
        else:
            config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise ConfigError(f"cluster: no credentials of a Kubernetes cluster here ({error}).") from None
    settings.retries = 0
    own = _NAMESPACE.read_text().strip() if _NAMESPACE.is_file() else "default"
    return Cluster(client.ApiClient(settings), namespace or own, workflow, poll)


def run(cluster: Cluster, job: Job) -> None:
    """Run a job to its end: start it or find the one that was started, follow it, show its first node's log.

    On SIGTERM the job is deleted where the pipeline run has been cancelled; where only this process has to go (its node
    is drained, say) it goes on, and the next launcher finds it.

    Args:
        cluster: Where.
        job: What.

    Raises:
        ConfigError: The cluster has no such API, or this account lacks rights.
        MobileClipError: The job failed (with the last lines of the pod that did), or vanished.
    """
    with _on_sigterm():
        try:
            start(cluster, job)
            follow(cluster, job)
        except _Terminated:
            _leave(cluster, job)
        except KeyboardInterrupt:
            cancel(cluster, job)
            raise


def start(cluster: Cluster, job: Job) -> str:
    """Start a job unless it is under way; one of that name that has ended is removed first.

    The caller has looked for the result before and not found it, so a job that ended well has lost it since.

    Returns:
        `created` or `found`.

    Raises:
        ConfigError: The cluster has no such API, or this account lacks rights.
        MobileClipError: Something else bears its name.
    """
    found = _get(cluster, job)
    if found is not None:
        if found["metadata"].get("annotations", {}).get(DIGEST) != job.digest:
            raise MobileClipError(f"cluster: a {job.kind} '{job.name}' is there that this version did not make.")
        state, _ = outcome(found.get("status") or {})
        if state in {"running", "suspended"} and not found["metadata"].get("deletionTimestamp"):
            logger.info("%s '%s' is there (%s), going on with it", job.kind, job.name, state)
            return "found"
        logger.info("%s '%s' has %s before, starting it again", job.kind, job.name, state)
        cancel(cluster, job)
        _wait_until_gone(cluster, job)
    try:
        _custom(cluster, job, "create", body=_accepted(cluster, job))
    except ApiException as error:
        if error.status == 409:  # another launcher was faster
            return "found"
        raise
    logger.info("%s '%s' started on %d %s", job.kind, job.name, job.nodes, "groups" if job.kind == "Job" else "nodes")
    return "created"


def follow(cluster: Cluster, job: Job) -> None:
    """Wait for the end of a job, and log what its first node says and why pods wait.

    Raises:
        MobileClipError: It failed, or vanished.
    """
    tail, before = Tail(job.api.first), ""
    while True:
        found = _patiently(lambda: _look(cluster, job, tail))
        if found is None:
            raise MobileClipError(f"cluster: {job.kind} '{job.name}' was deleted by someone else.")
        state, reason = outcome(found.get("status") or {})
        far = progress(job, found.get("status") or {})
        if (said := " ".join(filter(None, (state, reason, far)))) != before:
            logger.info("%s '%s': %s", job.kind, job.name, said)
            before = said
        if state == "succeeded":
            return
        if state == "failed":
            why = reason or "no reason given"
            raise MobileClipError(f"{job.stage}: {job.kind} '{job.name}' failed ({why}). {_words(cluster, job)}")
        time.sleep(cluster.poll)


def cancel(cluster: Cluster, job: Job) -> None:
    """Delete a job and its pods; one that is not there is left alone."""
    try:
        _custom(cluster, job, "delete", propagation_policy="Foreground")
    except ApiException as error:
        if error.status != 404:
            raise


def owner(cluster: Cluster) -> Json | None:
    """The pipeline run's Workflow as an owner reference: what it owns is deleted with it; None where it is unknown."""
    found = _workflow(cluster)
    if not found:
        return None
    kept = {key: found[key] for key in ("apiVersion", "kind")}
    return {**kept, "name": cluster.workflow, "uid": found["metadata"]["uid"]}


def run_is_cancelled(cluster: Cluster) -> bool:
    """Whether the pipeline run that this process is a part of was terminated, has ended or is gone.

    Kubeflow terminates a run by setting its Workflow's deadline to 0, Argo's own command line by `shutdown`.
    """
    if not cluster.workflow:
        return True  # nobody would come back for the job
    found = _workflow(cluster)
    if found is None:
        return True
    return _terminated(found) or (found.get("status") or {}).get("phase", "") in {"Failed", "Error", "Succeeded"}


def is_terminated(cluster: Cluster) -> bool:
    """Whether a person has terminated the pipeline run that this process is a part of."""
    try:
        found = _workflow(cluster)
    except (HTTPError, ApiException) as error:
        raise MobileClipError(f"cluster: the Workflow '{cluster.workflow}' cannot be read ({error}).") from None
    return found is not None and _terminated(found)


def _terminated(workflow: Json) -> bool:
    spec = workflow.get("spec") or {}
    return bool(spec.get("shutdown")) or spec.get("activeDeadlineSeconds") == 0


def _look(cluster: Cluster, job: Job, tail: Tail) -> Json | None:
    found = _get(cluster, job)  # before the logs: those of a job that has ended are whole
    try:
        tail.show(_pods(cluster, job), partial(_log, cluster))
    except ApiException as error:
        if error.status in {401, 403}:
            raise ConfigError(_no_rights(cluster, job)) from None
        raise
    return found


def _patiently(look: Callable[[], Json | None]) -> Json | None:
    """Look; an API server that is away for a while ends no training."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return look()
        except (HTTPError, ApiException) as error:
            if time.monotonic() > deadline:
                raise MobileClipError(f"cluster: no answer for {_PATIENCE:.0f} s ({error}); the job goes on.") from None
            time.sleep(1.0)


def _words(cluster: Cluster, job: Job) -> str:
    try:
        return last_words(_pods(cluster, job), partial(_log, cluster))
    except (HTTPError, ApiException) as error:
        return f"What its pods said cannot be read ({type(error).__name__})."


def _pods(cluster: Cluster, job: Job) -> list[Any]:
    found = cluster.core.list_namespaced_pod(cluster.namespace, label_selector=f"{job.api.pods}={job.name}")
    return sorted(found.items, key=lambda pod: pod.metadata.name)


def _log(cluster: Cluster, pod: str, **options: Any) -> list[str]:
    try:
        raw = cluster.core.read_namespaced_pod_log(pod, cluster.namespace, _preload_content=False, **options)
    except ApiException as error:
        if error.status in {400, 404}:  # its container has not started, or is gone
            return []
        raise
    return [line for line in raw.data.decode(errors="replace").splitlines() if line]


def _accepted(cluster: Cluster, job: Job) -> Json:
    """The job in the form that this server keeps whole: it drops unknown fields without a word, so ask it first."""
    belongs = owner(cluster)
    if job.kind == "PyTorchJob":
        return render(job, owner=belongs)
    for form in INDEX_FORMS if job.kind == "Job" else PATCH_FORMS:
        body = render(job, owner=belongs, form=form)
        if _custom(cluster, job, "create", body=body, dry_run="All")["spec"].get(form):
            return body
    if job.kind == "Job":
        raise ConfigError(
            "cluster: this server has no Indexed Jobs, want Kubernetes 1.24 or later, or a package compiled "
            "with MOBILECLIP_FAN_OUT=ParallelFor."
        )
    raise ConfigError(
        f"cluster: this server's TrainJob has none of {', '.join(PATCH_FORMS)}, want Trainer 2.0 or later."
    )


def _get(cluster: Cluster, job: Job) -> Json | None:
    try:
        return dict(_custom(cluster, job, "get"))
    except ApiException as error:
        if error.status == 404:
            return None
        raise


def _custom(cluster: Cluster, job: Job, verb: str, **options: Any) -> Any:
    """Ask the server; what no caller can mend is said in one sentence."""
    call = getattr(cluster.objects, f"{verb}_namespaced_custom_object")
    place = (job.api.group, job.api.version, cluster.namespace, job.api.plural)
    try:
        return call(*place, *(() if verb == "create" else (job.name,)), **options)
    except ApiException as error:
        if error.status in {401, 403}:
            raise ConfigError(_no_rights(cluster, job)) from None
        if error.status == 404 and "page not found" in str(error.body):
            remedy = "Kubeflow Trainer, or choose 'PyTorchJob'" if job.kind == "TrainJob" else "the training operator"
            raise ConfigError(f"cluster: no {job.api.plural}.{job.api.group} here, install {remedy}.") from None
        if 400 <= error.status < 500 and error.status not in {404, 409, 429}:
            said = " ".join(str(error.body or error.reason).split())[:400]
            raise MobileClipError(f"cluster: the server refuses {job.kind} '{job.name}': {said}") from None
        raise


def _no_rights(cluster: Cluster, job: Job) -> str:
    return (
        f"cluster: this account may not use {job.api.plural}.{job.api.group} and pods in namespace "
        f"'{cluster.namespace}', apply deploy/rbac.yaml."
    )


def _wait_until_gone(cluster: Cluster, job: Job) -> None:
    deadline = time.monotonic() + _PATIENCE
    while _get(cluster, job) is not None:
        if time.monotonic() > deadline:
            raise MobileClipError(f"cluster: {job.kind} '{job.name}' is not gone {_PATIENCE:.0f} s after its deletion.")
        time.sleep(min(cluster.poll, 1.0))


def _workflow(cluster: Cluster) -> Json | None:
    if not cluster.workflow:
        return None
    group, version, plural = _WORKFLOWS
    try:
        found = cluster.objects.get_namespaced_custom_object(
            group, version, cluster.namespace, plural, cluster.workflow
        )
    except ApiException as error:
        if error.status in {403, 404}:
            return None
        raise
    return dict(found)


def _leave(cluster: Cluster, job: Job) -> NoReturn:
    if run_is_cancelled(cluster):
        cancel(cluster, job)
        logger.warning("the run was cancelled: %s '%s' deleted", job.kind, job.name)
    else:
        logger.warning("this launcher has to go: %s '%s' goes on, the next launcher follows it", job.kind, job.name)
    raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def _on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception while the body runs; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _Terminated

    before: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
