"""Verbs about accounts at registries: login and logout.

A password is checked before it is kept, and shown nowhere. The file is in the state directory, where a running agent
reads it when a registry asks who is there, so that it need not be told.
"""

import argparse
import getpass
import sys
from typing import TYPE_CHECKING, Final

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of
from reconciler.engine import instance
from reconciler.errors import NotFoundError, ReconcilerError, UsageError

if TYPE_CHECKING:
    from reconciler.engine.registry.credentials import Password

_LONGEST: Final = 64 * 1024


def login(args: argparse.Namespace) -> int:
    """Check credentials with a registry, and keep them on this device."""
    from reconciler.agent.images import open_registry
    from reconciler.engine.registry import keyring
    from reconciler.engine.registry.credentials import key_of

    layout, device = layout_of(args), device_of(args)
    name = _name(args.registry)
    host = name.partition("/")[0]
    password = _asked(args, name)
    registry = open_registry(layout, device)
    try:
        checked = registry.check(host, password)
    finally:
        registry.close()
    if not checked:
        print(f"reconciler: {host}: asks nobody who is there: kept unchecked", file=sys.stderr)
    instance.prepare(layout)
    keyring.keep(layout.auth, name, password)
    print(f"{key_of(name)}: login succeeded, kept in {layout.auth}")
    if client.running(layout):  # what failed for want of credentials need not wait for its next try
        try:
            client.request(layout, "POST", "/v1/reconcile", {})
        except ReconcilerError:
            pass  # it tries again by itself
    return 0


def logout(args: argparse.Namespace) -> int:
    """Forget the credentials that login kept, of one registry or of all."""
    from reconciler.agent.images import open_keyring
    from reconciler.engine.registry import keyring
    from reconciler.engine.registry.credentials import key_of

    layout = layout_of(args)
    if bool(args.registry) == args.all:
        raise UsageError("logout: give either a registry or --all")
    if not layout.state.is_dir():
        raise NotFoundError(f"{layout.state}: no agent has run with this state directory")
    if args.all:
        for key in keyring.forget_all(layout.auth):
            print(f"{key}: credentials removed")
        return 0
    name = _name(args.registry)
    key = key_of(name)
    found = keyring.forget(layout.auth, name)
    elsewhere = open_keyring(layout, device_of(args)).named_elsewhere(key)
    hint = "device.yaml: registries.authfile has credentials for it, which stay" if elsewhere else ""
    if not found:
        raise NotFoundError(f"{key}: not logged in", hint=hint)
    print(f"{key}: credentials removed")
    if hint:
        print(f"reconciler: {key}: {hint}", file=sys.stderr)
    return 0


def _name(text: str) -> str:
    """A host[:port], or one with the start of repository names, or a usage error."""
    from reconciler.spec.reference import InvalidReferenceError, Reference

    name = text.removeprefix("https://").rstrip("/")
    host, slash, prefix = name.partition("/")
    try:
        Reference.parse(f"{host if '.' in host or ':' in host else 'localhost'}/{prefix or 'x'}:latest")
    except InvalidReferenceError as error:
        raise UsageError(f"registry {text!r}: not HOST[:PORT] or HOST[:PORT]/PREFIX") from error
    if not ("." in host or ":" in host or host == "localhost"):
        raise UsageError(
            f"registry {text!r}: not HOST[:PORT]", hint=f"write docker.io/{name}, or its host's name"
        )
    return f"{host}{slash}{prefix}"


def _asked(args: argparse.Namespace, name: str) -> "Password":
    """User and password, from the options, from standard input, or from the person at the terminal."""
    from reconciler.engine.registry.credentials import Password

    if args.password and args.password_stdin:
        raise UsageError("login: --password and --password-stdin exclude each other")
    terminal = sys.stdin.isatty() and not args.password_stdin
    user = args.username
    if not user:
        if not terminal:
            raise UsageError("login: no user name", hint="add -u USER, and --password-stdin")
        print(f"User name for {name}: ", end="", file=sys.stderr, flush=True)
        user = sys.stdin.readline(_LONGEST).strip()
    if args.password_stdin:
        secret = sys.stdin.read(_LONGEST).removesuffix("\n").removesuffix("\r")
    elif args.password:
        print(
            "reconciler: --password is seen by everybody who lists processes; use --password-stdin",
            file=sys.stderr,
        )
        secret = args.password
    elif terminal:
        secret = getpass.getpass(f"Password for {user} at {name}: ", sys.stderr)
    else:
        raise UsageError("login: nobody to ask for the password", hint="add --password-stdin")
    if not user or not secret or ":" in user or not (user + secret).isprintable():
        raise UsageError("login: user name and password must not be empty, and a user name has no ':'")
    return Password(user, secret)
