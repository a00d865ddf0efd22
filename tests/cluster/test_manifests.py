"""What lies in deploy/ is taken whole by a real API server."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from kubernetes import client, dynamic

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def folder(tmp_path):
    """deploy/ with a filled-in secret, as kustomization.yaml asks for."""
    place = tmp_path / "deploy"
    shutil.copytree(DEPLOY, place)
    secret = yaml.safe_load((place / "secret.example.yaml").read_text())
    secret["stringData"] = dict.fromkeys(secret["stringData"], "filled-in")
    (place / "secret.yaml").write_text(yaml.safe_dump(secret))
    return place


def plain(folder):
    """The listed resources in the namespace of the kustomization."""
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found = [body for name in file["resources"] for body in yaml.safe_load_all((folder / name).read_text())]
    for body in found:
        if body["kind"] != "Namespace":
            body["metadata"]["namespace"] = file["namespace"]
    return found


def by_kubectl(folder):
    """What `kubectl apply --kustomize` sends."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if 'unknown field "labels"' in done.stderr:
        pytest.skip("this kubectl is older than 1.22")
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def missing(wanted, held, place=""):
    """What the server has not kept; it may add defaults."""
    if isinstance(wanted, dict):
        return [row for key, value in wanted.items() for row in missing(value, (held or {}).get(key), f"{place}.{key}")]
    if isinstance(wanted, list):
        short = len(wanted) != len(held or [])
        rows = (
            [row for i, each in enumerate(wanted) for row in missing(each, (held or [])[i], f"{place}[{i}]")]
            if not short
            else []
        )
        return [place] if short else rows
    return [] if wanted == held else [f"{place}: {wanted!r} became {held!r}"]


@pytest.mark.slow
@pytest.mark.parametrize("render", [plain, by_kubectl])
def test_a_server_takes_everything_and_keeps_it_whole(operator, folder, render):
    objects = render(folder)
    kinds = [body["kind"] for body in objects]
    assert sorted(kinds) == sorted(
        ["Namespace", "ConfigMap", "Secret", "Role", "RoleBinding", "Deployment", "Service"]
        + 2 * ["PersistentVolumeClaim"]
    )
    found = dynamic.DynamicClient(operator.api)
    for body in objects:
        resource = found.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        namespace = body["metadata"].get("namespace")
        name = body["metadata"]["name"]
        try:
            resource.create(body=body, namespace=namespace)
        except client.ApiException as error:
            if error.status != 409:
                raise
            resource.patch(body=body, namespace=namespace, content_type="application/merge-patch+json")
        wanted = {key: value for key, value in body.items() if key != "stringData"}
        assert missing(wanted, resource.get(name=name, namespace=namespace).to_dict()) == []
    secret = operator.core.read_namespaced_secret("mobileclip", "mobileclip")
    assert set(secret.data) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_what_kubectl_sends_differs_from_the_files_by_labels_and_image_alone(folder):
    sent = {(body["kind"], body["metadata"]["name"]): body for body in by_kubectl(folder)}
    for body in plain(folder):
        held = sent.pop((body["kind"], body["metadata"]["name"]))
        rows = missing(body, held)
        assert all("image" in row for row in rows), rows
        assert held["metadata"]["labels"]["app.kubernetes.io/part-of"] == "mobileclip-pipelines"
    assert not sent
