"""What the components have in common: which checkpoint, and which store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from llama_index.core.schema import BaseComponent
from pydantic import BeforeValidator, ConfigDict, Field, SecretStr, field_serializer

from gmsa_rag.checks import check_rate
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.sharing import DEFAULT_MODEL, check_picklable, chosen_engine, path_text, shared_store
from gmsa_rag.memory.database import IN_MEMORY
from gmsa_rag.memory.store import MemoryStore


class GMSASettings(BaseComponent):
    """Which checkpoint, and which store. A copy, shallow or deep, has the same ones.

    Attributes:
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        gmsa: An engine in memory, instead of `model`; never shown, serialised or pickled.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        token: For a private hub id; not serialised.
        fingerprint: The only checkpoint that may be used; None takes any. Serialising and pickling put that of `gmsa`
            here, so that no other checkpoint takes its place unseen.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore. A MemoryStore on a file is
            serialised as its path, another one is not.
        namespace: Of a path or of None. No namespace sees the handles of another.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    model: Annotated[str, BeforeValidator(path_text)] = DEFAULT_MODEL
    gmsa: GMSA | None = Field(default=None, exclude=True, repr=False)
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    token: SecretStr | None = Field(default=None, exclude=True)
    fingerprint: str | None = None
    store: Annotated[MemoryStore | str | None, BeforeValidator(path_text)] = None
    namespace: str | None = None

    @property
    def memories(self) -> MemoryStore:
        """The store in use."""
        return shared_store(self.store, self.namespace)

    @property
    def engine(self) -> GMSA:
        """The engine in use, loaded if it is not yet.

        Raises:
            CheckpointError: If there is no such checkpoint, or it is damaged.
            FingerprintError: If it is not the one of `fingerprint`.
        """
        token = self.token.get_secret_value() if self.token else None
        settings = {"device": self.device, "dtype": self.dtype, "revision": self.revision, "token": token}
        return chosen_engine(self.gmsa, self.model, self.fingerprint, **settings)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo.update((id(shared), shared) for shared in (self.gmsa, self.store))
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        check_picklable(self.store)
        # A copy: LlamaIndex pickles each value to see whether it can, and deletes from the object what it cannot.
        light = self.model_copy(update={"gmsa": None, "fingerprint": self._expected()})
        return super(GMSASettings, light).__getstate__()

    @field_serializer("fingerprint")
    def _serialise_fingerprint(self, value: str | None) -> str | None:
        return self._expected()

    @field_serializer("store")
    def _serialise_store(self, store: MemoryStore | str | None) -> str | None:
        if isinstance(store, MemoryStore):
            return store.path if type(store) is MemoryStore and store.path != IN_MEMORY else None
        return store

    @field_serializer("namespace")
    def _serialise_namespace(self, value: str | None) -> str | None:
        return self.store.namespace if isinstance(self.store, MemoryStore) else value

    def _expected(self) -> str | None:
        """Fingerprint of the checkpoint that stands for `gmsa` where this does not go."""
        return self.fingerprint if self.gmsa is None else self.gmsa.fingerprint


class CompressionSettings(GMSASettings):
    """What the components that compress have in common.

    Attributes:
        rate: Tokens per soft token, >= 1.
        min_tokens: Shorter passages stay text.
    """

    rate: int = Field(default=8, strict=True)
    min_tokens: int = Field(default=0, ge=0)

    if not TYPE_CHECKING:  # type checkers read the signature off the fields

        def __init__(self, **settings: Any) -> None:
            check_rate(settings.get("rate", 8))  # a validator's error would come out as pydantic's
            super().__init__(**settings)
