"""Fields that the components have in common: which engine, and which store."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.loading import recorded_fingerprint
from gmsa_rag.inference.sharing import check_picklable, chosen_engine, path_text, shared_store
from gmsa_rag.memory.store import MemoryStore


class StoreSettings(BaseModel):
    """Which store. A copy, shallow or deep, has the same one.

    Attributes:
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore.
        namespace: Of a path or of None. No namespace sees the handles of another.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", populate_by_name=True, protected_namespaces=()
    )

    store: Annotated[MemoryStore | str | Path | None, BeforeValidator(path_text)] = None
    namespace: str | None = None

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo.update((id(shared), shared) for shared in self._shared())
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        check_picklable(self.store)
        return super().__getstate__()

    def _shared(self) -> list[object]:
        """What copies have in common."""
        return [self.store]

    def _memories(self) -> MemoryStore:
        return shared_store(self.store, self.namespace)


class GMSASettings(StoreSettings):
    """What the compressor and the chat model have in common: which engine, and which store.

    Weights are in no field but `gmsa`, and this one is never shown, serialised, pickled or copied. It is a field and
    no private attribute so that `configurable_fields()`, which builds a component anew from its fields, keeps it.

    Attributes:
        gmsa: An engine in memory, instead of a checkpoint's name.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        token: For a private hub id; serialised as the secret HF_TOKEN.
        fingerprint: The only checkpoint that may be used; None takes any. Serialising and pickling put that of `gmsa`
            here, so that no other checkpoint takes its place unseen.
    """

    gmsa: GMSA | None = Field(default=None, exclude=True, repr=False)
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    token: SecretStr | None = None
    fingerprint: str | None = None

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "gmsa": None, "fingerprint": self._expected()}}

    def _shared(self) -> list[object]:
        return [*super()._shared(), self.gmsa]

    def _expected(self) -> str | None:
        """Fingerprint of the checkpoint that stands for `gmsa` where this does not go."""
        return self.fingerprint if self.gmsa is None else self.gmsa.fingerprint

    def _known_fingerprint(self, model: str) -> str | None:
        """The engine's fingerprint without loading it; None for a hub id, which only loading tells."""
        return self._expected() or _recorded(model)

    def _engine(self, model: str) -> GMSA:
        token = self.token.get_secret_value() if self.token else None
        settings = {"device": self.device, "dtype": self.dtype, "revision": self.revision, "token": token}
        return chosen_engine(self.gmsa, model, self.fingerprint, **settings)


@cache
def _recorded(model: str) -> str | None:
    """The recorded fingerprint as it was first: a process loads a checkpoint once, whatever lies there later."""
    return recorded_fingerprint(model)
