"""One API server for all tests of this folder."""

import os

import pytest

from tests.cluster import apiserver, schemas
from tests.cluster.operator import Operator


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Folder, kubeconfig, and what its pods say; skipped where the server is not installed."""
    binary = apiserver.find_binary()
    if binary is None:
        why = f"no kube-apiserver, etcd or openssl here: run .ci/kube-apiserver, or set {apiserver.SERVER}"
        if os.environ.get(apiserver.REQUIRED):
            pytest.fail(why)
        pytest.skip(f"NOT TESTED AGAINST A CLUSTER: {why}")
    folder = tmp_path_factory.mktemp("apiserver")
    with apiserver.serve(folder, binary) as kubeconfig, apiserver.serve_logs(folder) as (port, logs):
        yield {"kubeconfig": str(kubeconfig), "folder": folder, "port": port, "logs": logs}


@pytest.fixture(scope="session")
def operator(server):
    """An administrator who does what operators, kubelets and garbage collectors do; TrainJobs are installed."""
    found = Operator(server)
    found.install(schemas.train_job())
    found.install(schemas.workflow())
    found.add_node()
    return found


@pytest.fixture
def namespace(operator, request):
    """A namespace of the test's own."""
    return operator.add_namespace(f"t{abs(hash(request.node.nodeid)) % 10**10}")
