#!/bin/sh
# Last step of every target: install the library itself, list what is inside, make a home that any user id of group 0
# (as OpenShift gives) may write to.
set -eu
# Not as an edit of the folder: the image must not depend on it.
/opt/uv/bin/uv pip install --python /opt/venv --no-deps --quiet .
# shellcheck disable=SC2086 # several options
/opt/uv/bin/uv export --frozen --no-dev --quiet --format cyclonedx1.5 --output-file sbom.json ${EXTRAS}
/opt/venv/bin/mobileclip --version
mkdir -p /home/mobileclip /data
chown -R 10001:0 /home/mobileclip /data
chmod -R g=u /home/mobileclip /data
