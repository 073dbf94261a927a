"""The typed errors of gmsa-rag. Each says what was expected, what came, and what to do.

GMSAError
├── ConfigError               a setting or recipe that makes no sense            (also ValueError)
├── InputError                an argument with a wrong value                     (also ValueError)
│   ├── InputTypeError        an argument of a wrong type                        (also TypeError)
│   ├── RateError             a compression rate that is not an int >= 1, or above 2**31 - 1
│   ├── ShapeError            a tensor of a wrong shape
│   └── PromptTooLongError    a prompt beyond the decoder's window; `.excess` says by how many positions
├── CheckpointError           a checkpoint that is missing, corrupt or incomplete
│   └── FingerprintError      a memory or store of other weights than the ones in use
├── MemoryFormatError         bytes that are not a memory, or a damaged one
├── HandleError
│   ├── MalformedHandleError  a handle that was cut or altered
│   ├── UnknownMemoryError    a whole handle that this store never issued        (also KeyError)
│   └── HandleNotAllowedError a handle outside the caller's allow-list
├── StoreError                a memory store that cannot be opened, read or written
│   └── CorruptStoreError     a store whose contents fail their checks
├── DataError                 a file to index or to train on that cannot be read
├── GenerationTimeoutError    an answer that took longer than was allowed        (also TimeoutError)
└── DependencyError           an optional package that is missing or doubly installed (also ImportError)
"""


class GMSAError(Exception):
    """Base of every error raised by gmsa-rag.

    Args:
        what: The thing that is wrong, in a few words.
        expected: What would have been right.
        got: What came instead.
        remedy: What the caller can do about it.
    """

    def __init__(self, what: str, *, expected: str, got: str, remedy: str) -> None:
        self.what, self.expected, self.got, self.remedy = what, expected, got, remedy
        super().__init__(f"{what}: expected {expected}, got {got}. {remedy}")

    def __str__(self) -> str:  # KeyError's own would show the repr
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments survive a process boundary
        return _rebuild, (type(self), self.__dict__)


def first_line(error: Exception) -> str:
    """Another library's exception as `got` of an error here: its type and the first line of what it says."""
    line = str(error).partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {line}"


def _rebuild(kind: type[GMSAError], state: dict[str, object]) -> GMSAError:
    error = kind.__new__(kind)
    error.__dict__.update(state)
    error.args = (f"{error.what}: expected {error.expected}, got {error.got}. {error.remedy}",)
    return error


class ConfigError(GMSAError, ValueError):
    """A setting or recipe that makes no sense."""


class InputError(GMSAError, ValueError):
    """An argument with a wrong value."""


class InputTypeError(InputError, TypeError):
    """An argument of a wrong type."""


class RateError(InputError):
    """A compression rate that is not an int >= 1, or not the one asked for."""


class ShapeError(InputError):
    """A tensor of a wrong shape."""


class PromptTooLongError(InputError):
    """A prompt beyond the decoder's window.

    Attributes:
        excess: Positions beyond what fits, >= 1.
    """

    def __init__(self, what: str, *, expected: str, got: str, remedy: str, excess: int) -> None:
        self.excess = excess
        super().__init__(what, expected=expected, got=got, remedy=remedy)


class CheckpointError(GMSAError):
    """A checkpoint that is missing, corrupt or incomplete."""


class FingerprintError(CheckpointError):
    """A memory or store made by other weights than the ones in use."""


class MemoryFormatError(GMSAError):
    """Bytes that are not a memory, or a damaged one."""


class HandleError(GMSAError):
    """A handle that cannot be turned into a memory."""


class MalformedHandleError(HandleError):
    """A handle that was cut or altered on its way."""


class UnknownMemoryError(HandleError, KeyError):
    """A whole handle that this store never issued, or whose memory is gone."""


class HandleNotAllowedError(HandleError):
    """A handle outside the caller's allow-list."""


class StoreError(GMSAError):
    """A memory store that cannot be opened, read or written."""


class CorruptStoreError(StoreError):
    """A store whose contents fail their checks."""


class DataError(GMSAError):
    """A file to index or to train on that cannot be read."""


class GenerationTimeoutError(GMSAError, TimeoutError):
    """An answer that took longer than was allowed."""


class DependencyError(GMSAError, ImportError):
    """An optional package that is missing or doubly installed."""
