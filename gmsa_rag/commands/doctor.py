"""`gmsa doctor`: what is installed, what it runs on, and whether checkpoint and store are sound."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from gmsa_rag import __version__
from gmsa_rag.commands.options import Model, existing_store
from gmsa_rag.errors import GMSAError


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        sound: Whether it is as it should be.
    """

    name: str
    value: str
    sound: bool = True


def doctor(
    model: Model = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compute the checkpoint's fingerprint anew.")] = False,
    store: Annotated[Path | None, typer.Option(metavar="STORE", help="Check a store; no record is changed.")] = None,
) -> None:
    """Report versions, devices, the checkpoint and a store; exit code 1 if something is wrong."""
    findings = [*_versions(), *_devices(), _faiss(), *_attempt("checkpoint", lambda: _checkpoint(model, verify))]
    if store is not None:
        findings += _attempt("store", lambda: _store(store))
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = f"{finding.name:<{width}}  {finding.value}"
        typer.secho(line if finding.sound else f"{line}  <- problem", fg=None if finding.sound else typer.colors.RED)
    if not all(finding.sound for finding in findings):
        raise typer.Exit(1)


def _attempt(name: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except GMSAError as error:
        return [Finding(name, str(error), False)]


def _versions() -> Iterator[Finding]:
    yield Finding("gmsa-rag", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("torch", "transformers", "sentence-transformers", "triton"):
        yield Finding(name, _version(name))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", f"{torch.get_num_threads()} threads")
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        yield Finding(f"cuda:{number}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "available")


def _faiss() -> Finding:
    from gmsa_rag.memory.flat import faiss_distributions

    names = faiss_distributions()
    found = ", ".join(f"{name} {_version(name)}" for name in names)
    if len(names) > 1:
        remedy = f'`pip uninstall {" ".join(names)}`, then `pip install "gmsa-rag[cpu]"`'
        return Finding("faiss", f"{found}, which overwrite each other's files: {remedy}", False)
    return Finding("faiss", found or 'not installed: `pip install "gmsa-rag[cpu]"`')


def _checkpoint(model: str | None, verify: bool) -> list[Finding]:
    from gmsa_rag.inference.loading import resolve_checkpoint
    from gmsa_rag.modeling.checkpoint import read_config, verify_fingerprint

    path = resolve_checkpoint(model or "gmsa-mini", local_files_only=True)
    config = read_config(path)
    found = [Finding("checkpoint", str(path))]
    if config.base:
        found.append(Finding("base", f"{config.base} {config.base_revision or ''}".rstrip()))
    if verify:
        return [*found, *_attempt("fingerprint", lambda: [_verified(verify_fingerprint(path, local_files_only=True))])]
    return [*found, Finding("fingerprint", config.fingerprint or "none recorded", bool(config.fingerprint))]


def _verified(fingerprint: str) -> Finding:
    return Finding("fingerprint", f"{fingerprint} verified")


def _store(path: Path) -> list[Finding]:
    from gmsa_rag.memory.index import VectorIndex
    from gmsa_rag.memory.store import MemoryStore

    existing_store(path)
    with MemoryStore(path) as store:
        store.check()
        memories = len(store)
    with VectorIndex(path) as index:
        index.check()
        passages = len(index)
    return [Finding("store", f"{path}: {passages} passages and {memories} memories, sound")]
