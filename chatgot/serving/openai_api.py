"""What may a client ask for? The bodies of OpenAI's API, checked, and what they mean here."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from chatgot.config import SamplingConfig
from chatgot.data.vocabulary import Vocabulary
from chatgot.sampling.controls import DRY_LENGTH, Controls
from chatgot.sampling.engine import Request
from chatgot.sampling.speeches import Speech, prompt_text, speech_lines, tidy
from chatgot.serving.api_errors import ApiError, bad_request
from chatgot.serving.limits import Limits

COMPLETION_TOKENS = 16  # of a completion whose request names no limit, as OpenAI has it
ANSWER_TOKENS = 1000  # the same for an answer in a chat, which ends by itself
MOST_STOPS = 16
LONGEST_STOP = 1000  # characters
LONGEST_NAME = 100
MOST_NAMES = 200  # of a room
MOST_COMPARED = 1000  # texts with the training text at once
SMALLEST = 1e-6  # of top_p and the temperature; what is below means: the likeliest token
LONGEST_VALUE = 80  # characters of a wrong value in a message


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _off_is_none(value: object) -> object:
    """Return None for 0 and -1, with which other programs say that top_k is off."""
    is_off = isinstance(value, int) and not isinstance(value, bool) and value in (0, -1)
    return None if is_off else value


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"^[^\x00-\x1f\x7f]+$")]
TopK = Annotated[int, Field(ge=1, le=10**9)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat; `developer` is what newer clients call `system`."""

    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] = ""
    name: Name | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Drawing(BaseModel):
    """The fields that both routes have; a field that is null counts as left out."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    model: str | None = None
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Annotated[list[Stop], BeforeValidator(_listed), Field(max_length=MOST_STOPS)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Annotated[TopK | None, BeforeValidator(_off_is_none)] = None
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    dry_multiplier: float = Field(0.0, ge=0, le=100)
    dry_base: float = Field(1.75, ge=1, le=100)
    dry_allowed_length: int | None = Field(None, ge=1, le=10**6)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    max_tokens: int | None = Field(None, ge=0)
    user: object = None  # OpenAI's id of the end user: it changes nothing


class CompletionBody(Drawing):
    """The body of /v1/completions."""

    prompt: object = ""
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = None
    suffix: str | None = None


class ChatBody(Drawing):
    """The body of /v1/chat/completions.

    character: who answers; `auto`: the model chooses among `room`, or among all speakers.
    user_name: who speaks in the messages of the role `user` that have no name.
    """

    messages: list[Message]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    character: Name | None = None
    user_name: Name | None = None
    room: list[Name] = Field([], max_length=MOST_NAMES)


class TokenizeBody(BaseModel):
    """The body of /tokenize; some programs call the text `prompt`."""

    model_config = ConfigDict(strict=True)
    model: str | None = None
    text: str | None = None
    prompt: str | None = None


class DetokenizeBody(BaseModel):
    """The body of /detokenize."""

    model_config = ConfigDict(strict=True)
    model: str | None = None
    tokens: list[int]


class CopiedBody(BaseModel):
    """The body of /copied: texts to compare with the training text."""

    model_config = ConfigDict(strict=True)
    model: str | None = None
    texts: list[str] = Field(max_length=MOST_COMPARED)


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], content: bytes) -> Body:
    """Return a body, checked; fields that nobody knows are ignored. Raises: ApiError."""
    try:
        value = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is no JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise bad_request("the body has to be a JSON object")
    given = {name: item for name, item in value.items() if item is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(map(str, first["loc"]))
        found = "" if first["type"] == "missing" else f", found {_shown(first['input'])}"
        raise bad_request(f"{param}: {_lower(first['msg'])}{found}", param) from error


def _refuse_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


@dataclass(frozen=True)
class Work:
    """What the engine shall write for one request of the API.

    requests: for each prompt in turn, its `n` completions.
    replaced: the characters outside the vocabulary, which the model sees as a substitute.
    """

    requests: list[Request]
    n: int
    replaced: str = ""

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of all prompts, each counted once."""
        return sum(len(request.prompt) for request in self.requests[:: self.n])


def completion_work(
    body: CompletionBody, vocabulary: Vocabulary, defaults: SamplingConfig, limits: Limits
) -> Work:
    """Return what a body of /v1/completions asks for. Raises: ApiError."""
    if body.suffix:
        raise bad_request("suffix is not supported: the model writes from left to right", "suffix")
    if body.best_of is not None and body.best_of != body.n:
        raise bad_request("best_of is supported only where it equals n", "best_of")
    prompts, replaced = _prompts(body.prompt, vocabulary, limits)
    max_tokens = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens == 0 and not body.echo:
        raise bad_request("max_tokens: 0 needs echo, for scoring alone", "max_tokens")
    controls = _controls(body, vocabulary, defaults, max_tokens)
    return _work(
        prompts,
        body.n,
        controls,
        limits,
        replaced=replaced,
        top_logprobs=body.logprobs,
        prompt_logprobs=body.echo and body.logprobs is not None,
    )


@dataclass(frozen=True)
class Scene:
    """Who has said what, and who may answer.

    names: of all who may begin to speak, so that an answer ends where they do.
    candidates: among whom the model chooses; empty: `character` answers.
    """

    speeches: list[Speech]
    character: str
    candidates: list[str]
    names: list[str]


def scene_of(body: ChatBody, speakers: tuple[str, ...], user: str, character: str) -> Scene:
    """Return what a chat is about.

    speakers: the known ones, most lines first; user, character: who talks where nobody says.
    """
    is_auto = body.character == "auto"
    user = body.user_name or user
    if not is_auto and body.character:
        character = body.character
    candidates: list[str] = []
    if is_auto:
        candidates = body.room or [name for name in speakers if name != user]
    names = {"user": user, "assistant": character}
    speeches = [
        Speech(message.name or names.get(message.role, ""), message.text)
        if message.role in names
        else Speech("", message.text)
        for message in body.messages
    ]
    # a name that nobody has said stays out of an empty speech
    speeches = [speech for speech in speeches if tidy(speech.text)]
    everyone = [*speakers, *(s.name for s in speeches), *body.room, user, character]
    return Scene(
        speeches, character, list(dict.fromkeys(candidates)), [name for name in everyone if name]
    )


def chat_work(
    body: ChatBody,
    scene: Scene,
    character: str,
    vocabulary: Vocabulary,
    defaults: SamplingConfig,
    limits: Limits,
) -> Work:
    """Return what a body of /v1/chat/completions asks for. Raises: ApiError.

    character: who answers, chosen by now.
    """
    if body.top_logprobs and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
    text, replaced = vocabulary.replace_unknown(prompt_text(scene.speeches, character))
    prompts = [_checked(vocabulary.encode(text), vocabulary, limits)]
    max_tokens = body.max_completion_tokens or body.max_tokens
    if max_tokens is None:
        max_tokens = min(ANSWER_TOKENS, limits.max_tokens)
    if max_tokens == 0:
        raise bad_request("max_tokens: expected at least 1, found 0", "max_tokens")
    controls = _controls(body, vocabulary, defaults, max_tokens, speech_lines(scene.names))
    top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _work(prompts, body.n, controls, limits, replaced=replaced, top_logprobs=top_logprobs)


def _work(  # noqa: PLR0913 what a request consists of
    prompts: list[tuple[int, ...]],
    n: int,
    controls: Controls,
    limits: Limits,
    *,
    replaced: str,
    top_logprobs: int | None,
    prompt_logprobs: bool = False,
) -> Work:
    count = len(prompts) * n
    if count > limits.completions:
        raise bad_request(
            f"found {count} completions (prompts x n), expected at most {limits.completions}", "n"
        )
    if controls.max_new_tokens > limits.max_tokens:
        raise bad_request(
            f"max_tokens: found {controls.max_new_tokens}, expected at most {limits.max_tokens}",
            "max_tokens",
        )
    if count * controls.max_new_tokens > limits.request_tokens:
        raise bad_request(
            f"found {count} completions of {controls.max_new_tokens} tokens, expected at most "
            f"{limits.request_tokens} tokens in all",
            "max_tokens",
        )
    scored = sum(map(len, prompts)) * n if prompt_logprobs else 0
    if scored > limits.request_tokens:
        raise bad_request(
            f"found {scored} tokens of prompts to score, expected at most {limits.request_tokens}",
            "logprobs",
        )
    requests = [
        Request(prompt, controls, choice, top_logprobs, prompt_logprobs)
        for prompt in prompts
        for choice in range(n)
    ]
    return Work(requests, n, replaced)


def _controls(
    body: Drawing,
    vocabulary: Vocabulary,
    defaults: SamplingConfig,
    max_tokens: int,
    speaker_lines: frozenset[str] | None = None,
) -> Controls:
    """Return how a body wants its texts drawn; what it leaves out is as in training's samples."""
    temperature = defaults.temperature if body.temperature is None else body.temperature
    top_p = defaults.top_p if body.top_p is None else max(body.top_p, SMALLEST)
    top_k = defaults.top_k if body.top_k is None else body.top_k
    if "top_k" in body.model_fields_set:  # 0 and -1 are off
        top_k = body.top_k
    return Controls(
        logit_bias=_bias(body.logit_bias, len(vocabulary)),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        dry_multiplier=body.dry_multiplier,
        dry_base=body.dry_base,
        dry_allowed_length=body.dry_allowed_length or DRY_LENGTH[vocabulary.kind],
        temperature=temperature if temperature >= SMALLEST else 0.0,
        top_k=top_k,
        top_p=top_p if top_p is not None and top_p < 1 else None,
        min_p=body.min_p or None,
        seed=secrets.randbits(48) if body.seed is None else body.seed,
        max_new_tokens=max_tokens,
        stop=tuple(body.stop),
        stop_before_speaker=speaker_lines,
    )


def _bias(given: Mapping[str, float], V: int) -> dict[int, float]:
    bias = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < V):
            raise bad_request(
                f"logit_bias: found {_shown(key)}, expected the id of a token, 0 to {V - 1}",
                "logit_bias",
            )
        bias[int(key)] = value
    return bias


def _prompts(
    given: Any, vocabulary: Vocabulary, limits: Limits
) -> tuple[list[tuple[int, ...]], str]:
    """Return the ids of each prompt, and the characters that were replaced. Raises: ApiError."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(map(_is_id, given))):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _wrong_prompt()
    if len(given) > limits.completions:
        raise bad_request(
            f"prompt: found {len(given)} prompts, expected at most {limits.completions}", "prompt"
        )
    prompts = []
    replaced = ""
    for prompt in given:
        if isinstance(prompt, str):
            text, unknown = vocabulary.replace_unknown(prompt)
            replaced += unknown
            ids = vocabulary.encode(text)
        elif isinstance(prompt, list) and all(map(_is_id, prompt)):
            ids = prompt
        else:
            raise _wrong_prompt()
        prompts.append(_checked(ids, vocabulary, limits))
    return prompts, "".join(sorted(set(replaced)))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_prompt() -> ApiError:
    return bad_request(
        "prompt: expected a text, a list of texts, a list of token ids, or a list of such lists",
        "prompt",
    )


def _checked(ids: list[int], vocabulary: Vocabulary, limits: Limits) -> tuple[int, ...]:
    """Return the ids of a prompt. Raises: ApiError where there are too many, or unknown ones."""
    if len(ids) > limits.prompt_tokens:
        raise bad_request(
            f"found a prompt of {len(ids)} tokens, expected at most {limits.prompt_tokens}",
            "prompt",
            "context_length_exceeded",
        )
    check_ids(ids, vocabulary, "prompt")
    return tuple(ids)


def check_ids(ids: list[int], vocabulary: Vocabulary, param: str) -> None:
    """Check that ids are tokens of a vocabulary. Raises: ApiError."""
    V = len(vocabulary)
    for token in ids:
        if not 0 <= token < V:
            raise bad_request(f"{param}: found the id {token}, expected 0 to {V - 1}", param)
