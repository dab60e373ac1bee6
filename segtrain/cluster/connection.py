"""Joining a Ray cluster, or starting one on this machine that nobody else can join."""

import ctypes
import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RpcError

from segtrain.cluster.ray_internals import (
    GIVES_SIGTERM_BACK,
    LIBRARY,
    TAKES_SIGTERM,
    AuthenticationTokenLoader,
    Config,
    GcsClient,
    ensure_token_if_auth_enabled,
    get_ray_address_file,
    maybe_enable_token_auth_if_token_available,
    ray_constants,
)
from segtrain.errors import StorageError, UserError
from segtrain.process import environment
from segtrain.storage.scratch import locked_folder, remove_leftovers

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
OWN_PREFIX = "segray-"
LONGEST_FOLDER = 43
"""Characters of a folder in which Ray's sockets have room: their paths may have 107, of which Ray's names take 64."""


@contextmanager
def connection() -> Iterator[None]:
    """Keep this process connected to Ray for the block.

    A process that has joined Ray stays where it is. Otherwise it joins the cluster that `RAY_ADDRESS` or `ray start` on
    this machine names. Where there is none, it starts a Ray of its own without a dashboard, which no other user can
    join and which ends with the block.

    Raises UserError if the cluster that RAY_ADDRESS names does not answer, or a cluster refuses the token.
    Raises StorageError if there is no folder for the files of an own Ray.
    """
    if ray.is_initialized():
        yield
        return
    address = _address()
    with _sigterm_as_before(), _own_ray() if address is None else _joined(address):
        yield


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Handle SIGTERM after the block as before it. Inside, Ray's own handler has it if nobody else had."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _handles_signals():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _joined(address: str) -> Iterator[None]:
    try:
        _join(address)
        yield
    finally:
        _leave()


def _init(address: str, **options: Any) -> None:
    """`ray.init`, after which SIGTERM is handled as before."""
    before = signal.getsignal(signal.SIGTERM)
    _call_keeping_sigterm(TAKES_SIGTERM, None, False)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
    if _handles_signals() and callable(before):
        signal.signal(signal.SIGTERM, before)


def _leave() -> None:
    """`ray.shutdown`. Ray's workers are killed, so what they have left in the temporary folder goes as well."""
    _call_keeping_sigterm(GIVES_SIGTERM_BACK)
    ray.shutdown()
    remove_leftovers()


def _call_keeping_sigterm(name: str, *arguments: Any) -> None:
    """Call the function of Ray's library now, and let Python handle SIGTERM as before; Ray finds it done later.

    Ray itself calls `TAKES_SIGTERM` milliseconds before `ray.init` returns: from then on SIGTERM prints a stack and
    aborts the process. It calls `GIVES_SIGTERM_BACK` a second before `ray.shutdown` returns: until Python takes it,
    SIGTERM ends the process at once. Where the library keeps the functions to itself, that stays so.
    """
    # `PyDLL`: no other thread of Python gets its turn before the handler is back.
    function = getattr(ctypes.PyDLL(LIBRARY), name, None)
    if function is None or not _handles_signals():
        return
    handler = signal.getsignal(signal.SIGTERM)
    function(*arguments)
    signal.signal(signal.SIGTERM, handler)


def _handles_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _address() -> str | None:
    """The address of the cluster to join; None if there is none. Ray itself would try a dead one for three minutes."""
    named = os.environ.get("RAY_ADDRESS", "")
    address = _left_by_ray_start() if named in ("", "auto") else named
    if not address or address == "local":
        return None
    if "://" in address:
        raise UserError(f"RAY_ADDRESS: {address} is for `ray job submit`; give host:port of the head node, or unset it")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError):
        if address == named:
            raise UserError(f"RAY_ADDRESS: no cluster answers at {address}; start Ray there or unset it") from None
        return None  # a `ray start` that was killed left its address behind
    return address


def _left_by_ray_start() -> str | None:
    """The address in the file that `ray start` writes, if this user or root wrote it.

    Everybody may write into that file's folder, and a cluster runs code in whoever joins it.
    """
    path = get_ray_address_file(None)
    try:
        with open(path) as file:
            owner = os.fstat(file.fileno()).st_uid
            address = file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None
    if owner not in (os.getuid(), 0):
        logger.warning(
            "%s is another user's: its cluster is not joined, unless RAY_ADDRESS=%s asks for it", path, address
        )
        return None
    return address


def _join(address: str) -> None:
    if os.environ.get("RAY_ADDRESS") in (None, "", "auto"):
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as Ray does for what it finds itself
    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)  # without a token the next line ends the process
        GcsClient(address=address)  # `ray.init` would try a wrong token for 20 s
        _init(address)
    except RpcError:
        raise UserError(
            f"RAY_ADDRESS: what answers at {address} is no head of Ray; RAY_ADDRESS=local starts an own one"
        ) from None
    except AuthenticationError:
        raise UserError(
            f"the Ray cluster at {address} asks for a token, and this is not it; set RAY_AUTH_MODE=token, and "
            f"RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the one that it was started with"
        ) from None


@contextmanager
def _own_ray() -> Iterator[None]:
    """Start a Ray that listens on loopback alone, asks for a token, and has its sockets in a closed folder.

    The token is the one in RAY_AUTH_TOKEN, if there is one. Otherwise it is drawn here, and stands only in the
    environment of Ray's processes, which other users cannot read. RAY_AUTH_MODE=disabled is for clusters that others
    join.
    """
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    base = _folder_for_sockets()
    remove_leftovers(base, OWN_PREFIX)
    # Ray opens its own folder to everybody, so it lies in one that only this user can enter.
    with (
        locked_folder(base, OWN_PREFIX) as folder,
        environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, replace=True),
    ):
        _read_variables_again()
        try:
            _start(folder)
            yield
        finally:
            _leave()
    _read_variables_again()


def _start(folder: Path) -> None:
    # Ray would start a worker for each core at once; ours have an environment of their own and cannot use them.
    no_prestart = environment(RAY_prestart_worker_first_driver="0", RAY_enable_worker_prestart="0")
    with no_prestart, _on_loopback():
        _init("local", include_dashboard=False, _temp_dir=str(folder / "r"))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let Ray use 127.0.0.1 as this machine's address, as it does on macOS, and so listen there.

    It has to be set this way, because Ray turns a loopback address that it is given into the machine's own.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _folder_for_sockets() -> str:
    """RAY_TMPDIR or the temporary folder; /tmp if the path of either is too long for sockets."""
    asked = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for base in (asked, "/tmp"):
        if len(base) + len(f"/{OWN_PREFIX}12345678/r") <= LONGEST_FOLDER and os.access(base, os.W_OK | os.X_OK):
            return base
    raise StorageError(
        f"{asked}: Ray's sockets cannot be there, nor in /tmp; set RAY_TMPDIR to a short path that can be written to"
    )


def _read_variables_again() -> None:
    """Make Ray read mode and token from the environment. It has read them at its import or for the last cluster."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
