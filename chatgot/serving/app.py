"""The routes: OpenAI's, those of the page, and those for whoever runs the server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from chatgot.data.vocabulary import END_OF_TEXT
from chatgot.sampling.originality import LEAST_COPY
from chatgot.sampling.speeches import choose_speaker
from chatgot.serving.access import Access, Gate
from chatgot.serving.answering import EventStream, Server, answer
from chatgot.serving.answers import (
    ChoiceReader,
    Form,
    Piece,
    chat_logprobs,
    legacy_logprobs,
    usage,
)
from chatgot.serving.api_errors import ApiError, bad_request, internal_error
from chatgot.serving.json_answers import JsonAnswer
from chatgot.serving.limits import Limits
from chatgot.serving.models import LoadedModels, Served
from chatgot.serving.openai_api import (
    ChatBody,
    CompletionBody,
    CopiedBody,
    DetokenizeBody,
    Scene,
    TokenizeBody,
    Work,
    chat_work,
    check_ids,
    completion_work,
    parse,
    scene_of,
)
from chatgot.serving.page_files import file_response, page_files
from chatgot.serving.watching import Watch

MOST_IN_HEADER = 100  # characters that were replaced
MOST_COMPARED_CHARACTERS = 100_000  # with the training text at once: about two seconds

# From what is new of a choice to the choice in OpenAI's form
Shape = Callable[[int, Piece], dict[str, object]]


def server_of(request: Request) -> Server:
    """Return what the routes share."""
    server = request.app.state.server
    assert isinstance(server, Server)
    return server


# --------------------------------------------------------------------------------------------------
# OpenAI's routes


async def list_models(request: Request) -> Response:
    server = server_of(request)
    models = await server.models.list()
    data = [model.content(is_loaded=server.models.is_loaded(model)) for model in models]
    return JsonAnswer({"object": "list", "data": data})


async def one_model(request: Request) -> Response:
    server = server_of(request)
    model = await server.models.find(request.path_params["name"])
    return JsonAnswer(model.content(is_loaded=server.models.is_loaded(model)))


async def completions(request: Request) -> Response:
    server = server_of(request)
    body = parse(CompletionBody, await request.body())
    served = await server.models.get(body.model)
    deadline = server.deadline
    vocabulary = served.loaded.vocabulary
    work = completion_work(body, vocabulary, served.loaded.config.sampling, server.limits)
    echoes = [vocabulary.decode(list(r.prompt)) if body.echo else None for r in work.requests]
    has_logprobs = body.logprobs is not None
    readers = [ChoiceReader(served, echo=echo, with_end=has_logprobs) for echo in echoes]
    form = Form("cmpl", "text_completion", served, _extra(work))

    def shape(index: int, piece: Piece) -> dict[str, object]:
        return {
            "text": piece.text,
            "index": index,
            "logprobs": legacy_logprobs(served, piece) if has_logprobs else None,
            "finish_reason": piece.finish_reason,
        }

    headers = _headers(work)
    if body.stream:
        wants_usage = body.stream_options.include_usage
        events = _events(server, served, work, readers, form, shape, wants_usage, deadline)
        return EventStream(events, headers)
    return await answer(request, _whole(server, served, work, readers, form, shape, deadline))


async def chat(request: Request) -> Response:
    server = server_of(request)
    body = parse(ChatBody, await request.body())
    served = await server.models.get(body.model)
    deadline = server.deadline
    scene = scene_of(body, served.names, served.user, served.character)
    character = await choose_character(server, served, scene)
    loaded = served.loaded
    work = chat_work(
        body, scene, character, loaded.vocabulary, loaded.config.sampling, server.limits
    )
    readers = [ChoiceReader(served) for _ in work.requests]
    form = Form("chatcmpl", "chat.completion", served, _extra(work))

    def logprobs_of(piece: Piece) -> dict[str, object] | None:
        return chat_logprobs(served, piece) if body.logprobs else None

    who: dict[str, object] = {"role": "assistant"}
    if character:
        who["name"] = character

    def message(index: int, piece: Piece) -> dict[str, object]:
        return {
            "index": index,
            "message": {**who, "content": piece.text, "refusal": None},
            "logprobs": logprobs_of(piece),
            "finish_reason": piece.finish_reason,
        }

    def delta(index: int, piece: Piece) -> dict[str, object]:
        return {
            "index": index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": logprobs_of(piece) if piece.tokens else None,
            "finish_reason": piece.finish_reason,
        }

    headers = _headers(work)
    if body.stream:
        first: list[dict[str, object]] = [
            {"index": index, "delta": {**who, "content": ""}, "finish_reason": None}
            for index in range(len(work.requests))
        ]
        wants_usage = body.stream_options.include_usage
        events = _events(
            server, served, work, readers, form, delta, wants_usage, deadline, first=first
        )
        return EventStream(events, headers)
    return await answer(request, _whole(server, served, work, readers, form, message, deadline))


async def choose_character(server: Server, served: Served, scene: Scene) -> str:
    """Return who answers. Raises: ApiError."""
    if not scene.candidates:
        return scene.character
    job = partial(
        choose_speaker, served.engine, served.loaded.vocabulary, scene.speeches, scene.candidates
    )
    try:
        chances = await server.batcher.run(job)
    except ValueError as error:
        raise bad_request(
            f"the model cannot choose among these speakers: {error}", "room"
        ) from error
    return chances[0][0]


async def _events(  # noqa: PLR0913 what a stream consists of
    server: Server,
    served: Served,
    work: Work,
    readers: list[ChoiceReader],
    form: Form,
    shape: Shape,
    wants_usage: bool,
    deadline: float,
    first: list[dict[str, object]] | None = None,
) -> AsyncGenerator[object]:
    """Yield the events of a stream, the usage last where it is asked for."""
    rest: dict[str, object] = {"usage": None} if wants_usage else {}
    async with server.ordered(served, work) as order:
        for choice in first or []:
            yield form.event([choice]) | rest
        async with aclosing(server.pieces(order, readers, deadline)) as pieces:
            async for index, piece in pieces:
                if piece.text or piece.tokens:
                    ending = piece.finish_reason
                    piece.finish_reason = None
                    yield form.event([shape(index, piece)]) | rest
                    piece = Piece(finish_reason=ending)
                if piece.finish_reason:
                    yield form.event([shape(index, piece)]) | rest
        if wants_usage:
            written = [p.completion for p in order.progress if p is not None]
            yield form.event([]) | {"usage": usage(work.prompt_tokens, written)}


async def _whole(  # noqa: PLR0913 what an answer consists of
    server: Server,
    served: Served,
    work: Work,
    readers: list[ChoiceReader],
    form: Form,
    shape: Shape,
    deadline: float,
) -> Response:
    """Return the whole answer."""
    async with server.ordered(served, work) as order:
        pieces = await server.whole(order, readers, deadline)
    choices = [shape(index, piece) for index, piece in enumerate(pieces)]
    written = [p.completion for p in order.progress if p is not None]
    answer = form.whole(choices, usage(work.prompt_tokens, written))
    return JsonAnswer(answer, headers=_headers(work))


def _extra(work: Work) -> dict[str, object]:
    return {"replaced": work.replaced} if work.replaced else {}


def _headers(work: Work) -> dict[str, str]:
    """Return the header that says which characters were replaced, percent-encoded."""
    if not work.replaced:
        return {}
    shown = work.replaced[:MOST_IN_HEADER].encode("utf-8", "backslashreplace")
    return {"X-ChatGoT-Replaced": quote(shown, safe="")}


# --------------------------------------------------------------------------------------------------
# Other routes


async def tokenize(request: Request) -> Response:
    server = server_of(request)
    body = parse(TokenizeBody, await request.body())
    text = body.prompt if body.text is None else body.text
    if text is None:
        raise bad_request("text: field required", "text")
    served = await server.models.get(body.model)
    vocabulary = served.loaded.vocabulary
    known, replaced = vocabulary.replace_unknown(text)
    ids = vocabulary.encode(known)
    answer: dict[str, object] = {
        "tokens": ids,
        "pieces": [served.pieces[token] for token in ids],
        "count": len(ids),
        "max_model_len": served.loaded.config.model.max_seq_length,
    }
    if replaced:
        answer["replaced"] = replaced
    return JsonAnswer(answer)


async def detokenize(request: Request) -> Response:
    server = server_of(request)
    body = parse(DetokenizeBody, await request.body())
    served = await server.models.get(body.model)
    check_ids(body.tokens, served.loaded.vocabulary, "tokens")
    text = served.loaded.vocabulary.decode(body.tokens)
    return JsonAnswer({"text": text, "prompt": text})


async def tokenizer_info(request: Request) -> Response:
    """Answer which tokens are special; lm-eval asks this before it uses /tokenize."""
    return JsonAnswer({"eos_token": END_OF_TEXT, "bos_token": None, "pad_token": None})


async def copied(request: Request) -> Response:
    """Answer what of some texts stands in the training text, in characters from and up to."""
    server = server_of(request)
    body = parse(CopiedBody, await request.body())
    length = sum(map(len, body.texts))
    if length > MOST_COMPARED_CHARACTERS:
        raise bad_request(
            f"texts: {length} characters together, at most {MOST_COMPARED_CHARACTERS}", "texts"
        )
    served = await server.models.get(body.model)
    measured = await asyncio.to_thread(served.originality_of, body.texts)
    if measured is None:
        said = "the text that the model was trained on is not here to compare with"
        raise ApiError(404, said, code="text_not_here")
    return JsonAnswer(
        {
            "least": LEAST_COPY,
            "copied_share": measured.share,
            "longest_copy": measured.longest,
            "copies": measured.copies,
        }
    )


async def watched_runs(request: Request) -> Response:
    server = server_of(request)
    models = await server.models.list()
    return JsonAnswer(await asyncio.to_thread(server.watch.runs, models))


async def watched_run(request: Request) -> Response:
    server = server_of(request)
    run_id = request.path_params["run_id"]
    run = await asyncio.to_thread(server.watch.run, run_id)
    if run is None:
        raise ApiError(404, f"there is no run {run_id[:200]!r} to watch", code="run_not_found")
    return JsonAnswer(run)


async def health(request: Request) -> Response:
    return JsonAnswer({"status": "ok"})


async def metrics(request: Request) -> Response:
    server = server_of(request)
    text = server.counters.text(server.batcher)
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


# --------------------------------------------------------------------------------------------------
# The app

ROUTES: tuple[tuple[str, str, Callable[[Request], Awaitable[Response]]], ...] = (
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{name:path}", one_model),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/chat/completions", chat),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/tokenizer_info", tokenizer_info),
    ("POST", "/copied", copied),
    ("GET", "/watch/runs", watched_runs),
    ("GET", "/watch/runs/{run_id}", watched_run),
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
)


def make_app(
    models: LoadedModels,
    watch: Watch,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
) -> Gate:
    """Return the whole app, its gate before it."""
    limits = limits or Limits()
    access = access or Access()
    server = Server(models, watch, limits)
    # no pages of its own: they would load scripts from elsewhere
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.server = server
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_mistake)
    for method, path, handler in ROUTES:
        app.add_route(path, handler, methods=[method])
    files = page_files()
    for path, file in files.items():
        app.add_route(path, _page_route(file), methods=["GET"])
    access = replace(access, public=access.public | frozenset(files))
    return Gate(app, access, limits, server.counters)


def _page_route(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return file_response(path)

    return page


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_mistake(request: Request, error: Exception) -> Response:
    """Answer where we made a mistake; the gate logs it."""
    return internal_error().response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer a path or a method that no route has."""
    assert isinstance(error, HTTPException)
    said = "there is no such route" if error.status_code == 404 else str(error.detail)
    message = f"{request.method} {request.url.path[:200]}: {said}"
    return ApiError(error.status_code, message, headers=error.headers).response()
