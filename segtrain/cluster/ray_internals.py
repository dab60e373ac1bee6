"""The private parts of Ray that segtrain uses, because Ray has no public way to do the same.

Only this file and `train_internals.py` import private modules of Ray. `tests/cluster/test_internals.py` checks each
name, and says what it is used for when a new version of Ray has changed it.
"""

from ray._common.utils import get_ray_address_file
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import (
    ensure_token_if_auth_enabled,
    maybe_enable_token_auth_if_token_available,
)
from ray._private.runtime_env.packaging import _dir_travel as walk_upload
from ray._private.runtime_env.packaging import _get_excludes as upload_excludes
from ray._private.state import state as cluster_state
from ray._private.worker import get_dashboard_url, global_worker
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray._raylet import __file__ as LIBRARY  # noqa: N812  a path, and so a constant

TAKES_SIGTERM = "_ZN3ray6RayLog27InstallFailureSignalHandlerEPKcb"
"""`ray::RayLog::InstallFailureSignalHandler(char const*, bool)` of Ray's library, and what undoes it."""
GIVES_SIGTERM_BACK = "_ZN3ray6RayLog21UninstallSignalActionEv"

__all__ = [
    "GIVES_SIGTERM_BACK",
    "LIBRARY",
    "TAKES_SIGTERM",
    "AuthenticationTokenLoader",
    "Config",
    "GcsClient",
    "cluster_state",
    "ensure_token_if_auth_enabled",
    "get_dashboard_url",
    "get_ray_address_file",
    "global_worker",
    "maybe_enable_token_auth_if_token_available",
    "ray_constants",
    "upload_excludes",
    "walk_upload",
]
