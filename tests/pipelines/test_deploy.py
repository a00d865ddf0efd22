"""Names in deploy/ and docker/ are those that the compiled pipelines ask for."""

import re
from pathlib import Path

import yaml

from mobileclip import __version__
from pipelines import resources

ROOT = Path(__file__).parents[2]


def documents(name):
    return [d for d in yaml.safe_load_all((ROOT / "deploy" / name).read_text()) if d]


def test_settings_secret_and_volume_have_the_names_pods_ask_for():
    (settings,), (secret,), (volume,) = map(documents, ("settings.yaml", "secret.example.yaml", "volume.yaml"))
    assert settings["metadata"]["name"] == secret["metadata"]["name"] == resources.SETTINGS
    assert volume["metadata"]["name"] == resources.VOLUME
    assert set(settings["data"]) <= set(resources.FROM_CONFIG_MAP)
    assert set(secret["stringData"]) <= set(resources.FROM_SECRET)
    assert not any(secret["stringData"].values())


def test_every_manifest_is_listed_and_the_secret_is_not_committed():
    (file,) = documents("kustomization.yaml")
    there = {path.name for path in (ROOT / "deploy").glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    assert set(file["resources"]) == there | {"secret.yaml"}
    assert (ROOT / "deploy/.gitignore").read_text().split() == ["secret.yaml"]
    assert file["images"] == [{"name": "mobileclip-pipelines", "newTag": __version__}]


def test_the_server_may_run_where_pods_are_restricted():
    (deployment,) = (d for d in documents("mlflow.yaml") if d["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_images_take_the_versions_that_are_locked():
    text = (ROOT / "docker/Dockerfile").read_text()
    locked = (ROOT / "uv.lock").read_text()
    assert "kfp==2.17.0" in text
    assert 'name = "kfp"\nversion = "2.17.0"' in locked
    assert f"mobileclip-pipelines:{__version__}" in text


def test_a_workstation_has_no_secret_of_its_own_and_listens_to_itself_alone():
    text = (ROOT / "docker/compose.yaml").read_text()
    file = yaml.safe_load(text)
    assert set(file["services"]) == {"mlflow", "s3", "buckets"}
    for service in file["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        secret = service.get("environment", {}).get("AWS_SECRET_ACCESS_KEY", "${S3_SECRET:?")
        assert secret.startswith("${S3_SECRET:?")  # no default: compose ends with a sentence where it is not set
    assert file["services"]["mlflow"]["healthcheck"]["test"]
    assert f"mobileclip-pipelines:{__version__}" in text


def test_every_target_of_the_image_is_closed_labelled_and_checked():
    text = (ROOT / "docker/Dockerfile").read_text()
    targets = text.split("\nFROM ")[1:]
    final = [target for target in targets if re.match(r"packages-\w+ AS (base|train|export)\n", target)]
    assert len(final) == 3
    for target in final:
        assert re.search(r"^USER \d+:0$", target, re.MULTILINE)
        assert "HEALTHCHECK" in target
        assert "org.opencontainers.image.revision=${GIT_COMMIT}" in target
    assert "uv sync --frozen" in text
    assert "sbom.json" in (ROOT / "docker/finish.sh").read_text()
