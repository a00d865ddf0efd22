"""A real S3 API (moto's server in a process of its own) for tests."""

import atexit
import functools
import subprocess
import sys
from typing import Any

import boto3
import pytest
from botocore.config import Config

from mobileclip import storage

START = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print(server.get_host_and_port()[1], flush=True)
while sys.stdin.read(1):
    time.sleep(1)
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@functools.cache
def endpoint() -> str:
    """Started once per process; it ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-c", START],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    port = next(line for line in process.stdout if line.strip().isdigit())  # moto greets on the same stream
    return f"http://127.0.0.1:{port.strip()}"


def environment() -> dict[str, str]:
    """What a process needs to speak to it."""
    return {"AWS_ENDPOINT_URL": endpoint(), **CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true"}


def use(monkeypatch: pytest.MonkeyPatch, **more: str) -> None:
    """Let this process speak to it, with `more` in the environment."""
    for name, value in {**environment(), **more}.items():
        monkeypatch.setenv(name, value)
    storage.s3.connect.cache_clear()  # a client keeps the address it was made with


def bucket(name: str) -> str:
    """An empty bucket as a URI."""
    client().create_bucket(Bucket=name)
    return f"s3://{name}"


def client() -> Any:
    """Another tool than ours."""
    return boto3.client(
        "s3", endpoint_url=endpoint(), aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1",
        config=Config(request_checksum_calculation="when_required"),
    )  # fmt: skip
