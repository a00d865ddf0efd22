"""The image all components run in, and the decorator that makes a function one."""

import functools
import os

from kfp import dsl

from mobileclip import __version__

IMAGE = os.environ.get("MOBILECLIP_IMAGE") or f"mobileclip-pipelines:{__version__}"
"""Read once, when components are loaded. On a cluster name it by digest (`repository@sha256:...`): the image is part of
the cache key, and a moving tag would serve results of older code."""

# The library is in the image: nothing is installed at run time, and the local runner leaves the environment alone.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False, packages_to_install=[])

# What the launcher's task was given goes to the pods of its job: the launcher itself computes nothing.
TO_PODS = [
    dsl.TaskConfigField.RESOURCES,
    dsl.TaskConfigField.KUBERNETES_TOLERATIONS,
    dsl.TaskConfigField.KUBERNETES_NODE_SELECTOR,
    dsl.TaskConfigField.KUBERNETES_AFFINITY,
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.ENV, apply_to_task=True),
    dsl.TaskConfigPassthrough(field=dsl.TaskConfigField.KUBERNETES_VOLUMES, apply_to_task=True),
]
