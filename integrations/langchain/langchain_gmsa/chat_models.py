"""ChatGMSA: a chat model that reads memories in the place of their handles."""

from __future__ import annotations

import builtins
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import BeforeValidator, Field, SecretStr

from gmsa_rag.errors import GMSAError, InputError
from gmsa_rag.inference.engine import GMSA
from gmsa_rag.inference.prompt import check_overflow
from gmsa_rag.memory.handles import find_handles, parse_handle
from langchain_gmsa.engines import DEFAULT_MODEL, GMSASettings, path_text
from langchain_gmsa.fusing import FusedBatch, Outcome
from langchain_gmsa.messages import (
    PROVIDER,
    Prompt,
    Reading,
    Turn,
    read_prompt,
    read_turns,
    response_metadata,
    usage,
    without_leading_space,
)

_PER_CALL = ("allowed_handles", "max_tokens", "on_missing", "overflow", "temperature", "top_p")
_batch: ContextVar[FusedBatch | None] = ContextVar("langchain_gmsa_batch", default=None)


class ChatGMSA(BaseChatModel, GMSASettings):
    """A chat model whose prompts may hold handles, wherever there is text: system, human, AI and tool messages.

    Each handle is replaced by its memory from the store, the chat template is put around the messages, and the decoder
    reads the memories as soft tokens. What messages say is plain text to it: control tokens' names stay text. Apply
    `neutralise` to what users write, so that nobody can bring in a handle of their own, or allow a call's own handles
    only: `ChatGMSA().invoke(prompt, allowed_handles=[...])`.

    batch() and abatch() generate for all inputs in one fused call; `max_concurrency` bounds its size.

    Args:
        model: Checkpoint: a bundled name, a directory, or a hub id. It is loaded at first use, once per process.
        temperature: 0 or None takes the likeliest token; higher draws more freely.
        top_p: Draw from the likeliest tokens that together have this probability.
        max_tokens: Most tokens of an answer; None for as many as the decoder's window holds.
        stop: Strings to end before.
        streaming: Whether invoke() streams to callbacks.
        on_missing: For a handle whose memory is gone: "error" raises, "text" puts the passage's own text in its place,
            "drop" leaves it out. Also per call.
        allowed_handles: The handles that may be used; None allows all. Also per call.
        overflow: For a prompt that does not fit: "error" raises, "drop_last" leaves memories out from the end and says
            how many in the response. Also per call, as are temperature, top_p and max_tokens.
        timeout: Accepted and not used: nothing is asked over a network.
        max_retries: Accepted and not used.
        api_key: Accepted and not used.
        gmsa: An engine in memory, instead of `model`.
        device: "auto" takes cuda, mps or cpu, the first there is.
        dtype: "auto", "float32", "bfloat16" or "float16".
        revision: Of a hub id.
        store: Where memories are kept: None for default_store(), a path, or a MemoryStore. Give it the compressor's.
    Raises:
        pydantic.ValidationError: If a field has a wrong type or value.
    Example:
        >>> ChatGMSA(max_tokens=4).invoke("Where does the Danube begin?").response_metadata["model_provider"]
        'gmsa'
    """

    model_name: Annotated[str, BeforeValidator(path_text)] = Field(default=DEFAULT_MODEL, alias="model")
    temperature: float | None = Field(default=None, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int | None = Field(default=128, ge=1)
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    streaming: bool = False
    on_missing: Literal["error", "text", "drop"] = "error"
    allowed_handles: frozenset[str] | None = None
    overflow: Literal["error", "drop_last"] = "error"
    timeout: float | None = None
    max_retries: int | None = None
    api_key: SecretStr | None = None

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several prompts in one fused generation; each answer is what invoke() gives.

        Args:
            inputs: Prompts.
            config: LangChain's, one for all or one each. `max_concurrency` bounds the prompts generated at once.
            return_exceptions: Put an error in the place of its answer instead of raising it.
            **kwargs: As for invoke().
        Returns:
            One message per input.
        """
        with self._fused(inputs, config):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer several prompts without blocking the event loop; see batch()."""
        with self._fused(inputs, config):
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens. Soft tokens have none, so handles are passed over."""
        return [token for ids in self._gmsa().codec.encode(_texts_between(text)) for token in ids]

    def get_num_tokens(self, text: str) -> int:
        """Positions that a text takes, a handle as many as its soft tokens.

        Args:
            text: With or without handles, which need not be of this store.
        Returns:
            Positions, >= 0; control tokens of a template are not among them.
        """
        soft = sum(parse_handle(handle).num_soft_tokens for handle in find_handles(text))
        return soft + len(self.get_token_ids(text))

    def get_num_tokens_from_messages(
        self,
        messages: list[BaseMessage],
        tools: Sequence[builtins.dict[str, Any] | type | Callable[..., Any] | BaseTool] | None = None,
    ) -> int:
        """Positions that messages take as a prompt, chat template and soft tokens included.

        Args:
            messages: With or without handles, which must be of this store.
            tools: Not counted; a warning says so.
        Returns:
            What `usage_metadata["input_tokens"]` would be, >= 1.
        """
        if tools is not None:
            warnings.warn("ChatGMSA takes no tools: they are not counted.", stacklevel=2)
        return self._read(read_turns(messages), self._reading({})).positions

    @property
    def _llm_type(self) -> str:
        return "gmsa-chat"

    @property
    def _identifying_params(self) -> builtins.dict[str, Any]:
        names = ("revision", "dtype", "temperature", "top_p", "max_tokens", "on_missing", "overflow")
        allowed = None if self.allowed_handles is None else sorted(self.allowed_handles)
        settings = {name: getattr(self, name) for name in names}
        return {"model_name": self._name, "stop_sequences": self.stop, "allowed_handles": allowed, **settings}

    @property
    def _name(self) -> str:
        """Name of the checkpoint; for an engine in memory, its fingerprint."""
        if self.gmsa is not None and "model_name" not in self.model_fields_set:
            return f"gmsa:{self.gmsa.fingerprint[:16]}"
        return self.model_name

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = PROVIDER
        if not isinstance(kwargs.get("model"), str):
            params["ls_model_name"] = self._name
        return params

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        turns = read_turns(messages)
        reading, sampling = self._reading(kwargs), self._sampling(stop, kwargs)
        batch = _batch.get()
        outcome = None
        if batch is not None and batch.owner is self:
            outcome = batch.take(turns, lambda prompts: self._answer(prompts, reading, sampling))
        if outcome is None:
            [outcome] = self._answer([turns], reading, sampling)
        if isinstance(outcome, GMSAError):
            raise outcome
        return outcome

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        prompt = self._read(read_turns(messages), self._reading(kwargs))
        answer = ""
        for piece in without_leading_space(self._gmsa().stream(prompt.parts, **self._sampling(stop, kwargs))):
            answer += piece
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                usage_metadata=usage(prompt, answer, self._gmsa()),
                response_metadata=response_metadata(prompt, self._name),
            )
        )

    @contextmanager
    def _fused(
        self, inputs: Sequence[LanguageModelInput], config: RunnableConfig | list[RunnableConfig] | None
    ) -> Iterator[None]:
        """Have the runs inside share one generation."""
        first = (config[0] if config else {}) if isinstance(config, list) else config or {}
        prompts = []
        for value in inputs:
            with suppress(ValueError, NotImplementedError):  # a wrong input fails in its own run
                prompts.append(read_turns(self._convert_input(value).to_messages()))
        token = _batch.set(FusedBatch(self, prompts, first.get("max_concurrency")))
        try:
            yield
        finally:
            _batch.reset(token)

    def _answer(self, prompts: list[list[Turn]], reading: Reading, sampling: builtins.dict[str, Any]) -> list[Outcome]:
        """Generate for several prompts at once; a prompt that is wrong gets its error."""
        read = [self._try_read(turns, reading) for turns in prompts]
        good = [prompt for prompt in read if not isinstance(prompt, GMSAError)]
        texts = iter(self._gmsa().generate([prompt.parts for prompt in good], **sampling) if good else ())
        return [prompt if isinstance(prompt, GMSAError) else self._result(prompt, next(texts)) for prompt in read]

    def _try_read(self, turns: list[Turn], reading: Reading) -> Prompt | GMSAError:
        try:
            return self._read(turns, reading)
        except GMSAError as error:
            return error

    def _read(self, turns: list[Turn], reading: Reading) -> Prompt:
        return read_prompt(turns, self._gmsa(), self._memories(), reading)

    def _result(self, prompt: Prompt, text: str) -> ChatResult:
        text = "".join(without_leading_space([text]))
        message = AIMessage(
            content=text,
            usage_metadata=usage(prompt, text, self._gmsa()),
            response_metadata=response_metadata(prompt, self._name),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _reading(self, kwargs: builtins.dict[str, Any]) -> Reading:
        _check_per_call(kwargs, self._name)
        allowed: Collection[str] | None = kwargs.get("allowed_handles", self.allowed_handles)
        on_missing, overflow = kwargs.get("on_missing", self.on_missing), kwargs.get("overflow", self.overflow)
        check_overflow(overflow)
        return Reading(on_missing, None if allowed is None else frozenset(allowed), overflow)

    def _sampling(self, stop: list[str] | None, kwargs: builtins.dict[str, Any]) -> builtins.dict[str, Any]:
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        return {
            "max_new_tokens": self._gmsa().decoder_window if max_tokens is None else max_tokens,
            "temperature": kwargs.get("temperature", self.temperature) or 0.0,
            "top_p": kwargs.get("top_p", self.top_p),
            "stop": (self.stop or ()) if stop is None else stop,
        }

    def _gmsa(self) -> GMSA:
        return self._engine(self.model_name)


def _check_per_call(kwargs: builtins.dict[str, Any], model: str) -> None:
    """Raise InputError for settings that a call cannot have; LangChain adds `stream` itself."""
    unknown = sorted(set(kwargs) - {*_PER_CALL, "model", "stream"})
    if kwargs.get("model") not in (None, model):
        unknown.append(f"model={kwargs['model']!r}")
    if unknown:
        raise InputError(
            "settings of this call",
            expected=", ".join(_PER_CALL),
            got=", ".join(unknown),
            remedy="Leave it out, or make another ChatGMSA.",
        )


def _texts_between(text: str) -> list[str]:
    """What stands before, between and after the handles of a text."""
    texts = []
    for handle in find_handles(text):
        before, _, text = text.partition(handle)
        texts.append(before)
    return [*texts, text]
