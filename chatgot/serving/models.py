"""Which models can be asked, and which of them are loaded?"""

import asyncio
import gc
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from chatgot.checkpointing.checkpoints import read_outline
from chatgot.checkpointing.names import FILE, FOLDER
from chatgot.data.vocabulary import Kind, Vocabulary
from chatgot.errors import CheckpointRejected
from chatgot.exchange.importing import read_start
from chatgot.sampling.engine import Engine
from chatgot.sampling.loading import LoadedModel, load_model, marked_loss
from chatgot.sampling.originality import Originality, originality_of
from chatgot.sampling.picking import list_runs
from chatgot.sampling.speakers import Speaker, default_pair
from chatgot.sampling.training_text import training_index
from chatgot.serving.api_errors import ApiError, too_busy
from chatgot.serving.batching import Batcher

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 1.0  # between two looks into the folder of checkpoints
MOST_LOADED = 2  # models that are kept when nobody asks them
MOST_ALIVE = 4  # with those that still write
MOST_REMEMBERED = 1000  # files whose description is remembered
MOST_SPEAKERS_SHOWN = 200
Which = Literal["best", "latest", "file"]


@dataclass(frozen=True)
class About:
    """What a checkpoint says of itself, without its weights.

    user, character: who talks to whom where nobody says; empty: the text has no speakers.
    """

    run_id: str
    step: int
    val_loss: float | None
    context: int
    vocabulary_size: int
    tokens: Kind
    speakers: tuple[Speaker, ...]
    user: str
    character: str
    created: int


# A file as it is now, by path, size and time: one that takes its place is another one
Identity = tuple[Path, int, int]


@dataclass(frozen=True)
class KnownModel:
    """A model that can be asked, by its id."""

    id: str
    which: Which
    identity: Identity
    about: About

    @property
    def path(self) -> Path:
        return self.identity[0]

    def content(self, *, is_loaded: bool) -> dict[str, object]:
        """Return the model as /v1/models shows it."""
        about = self.about
        return {
            "id": self.id,
            "object": "model",
            "created": about.created,
            "owned_by": "chatgot",
            "chatgot": {
                "run_id": about.run_id,
                "step": about.step,
                "val_loss": about.val_loss,
                "checkpoint": self.which,
                "context": about.context,
                "vocabulary_size": about.vocabulary_size,
                "tokens": about.tokens,
                "speakers": [vars(one) for one in about.speakers[:MOST_SPEAKERS_SHOWN]],
                "user": about.user,
                "character": about.character,
                "loaded": is_loaded,
            },
        }


def describe(path: Path) -> About:
    """Return what a checkpoint says of itself. Raises: CheckpointRejected."""
    outline = read_outline(path)
    speakers = tuple(Speaker(**speaker) for speaker in outline.get("speakers", []))
    user, character = default_pair(speakers)
    return About(
        run_id=outline["run_id"],
        step=outline["global_step"],
        val_loss=marked_loss(outline),
        context=_context(outline["config"]),
        vocabulary_size=len(outline["vocabulary"]),
        tokens="subwords" if "tokenizer" in outline else "characters",
        speakers=speakers,
        user=user,
        character=character,
        created=int(path.stat().st_mtime),
    )


def _context(config: Mapping[str, Any]) -> int:
    return int(config["model"]["max_seq_length"])


class Catalogue:
    """Knows the models in a folder of checkpoints, and perhaps one file elsewhere.

    file: a checkpoint that is offered as well, by its name.
    default: the id of the model that answers where a request names none.
    It may be used by several threads.
    """

    def __init__(self, checkpoint_dir: Path, default: str, file: Path | None = None) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.default = default
        self.file = file
        self._lock = threading.Lock()
        self._models: list[KnownModel] = []
        self._looked = float("-inf")
        self._seen: frozenset[tuple[str, int, int]] | None = None
        self._about: OrderedDict[Identity, About] = OrderedDict()

    @property
    def is_fresh(self) -> bool:
        """Return whether the folder was looked at within the last second."""
        return time.monotonic() - self._looked < LOOK_AGAIN_S

    def models(self) -> list[KnownModel]:
        """Return all models, the default first, then the newest run; at most a second old."""
        with self._lock:
            if not self.is_fresh:
                seen = _files_in(self.checkpoint_dir) | _file_there(self.file)
                if seen != self._seen:
                    self._models = self._list()
                    self._seen = seen
                self._looked = time.monotonic()
            return self._models

    def look_again(self) -> None:
        """Forget what was seen: a file has gone since."""
        with self._lock:
            self._looked = float("-inf")
            self._seen = None

    def find(self, name: str | None) -> KnownModel:
        """Return the model of an id, a run's id or a configuration's name; None: the default.

        Raises: ApiError where there is none.
        """
        models = self.models()
        wanted = self.default if name is None else name
        base, _, which = wanted.rpartition(":")
        if which not in ("best", "latest"):
            base = wanted
            which = "best"
        exact = [model for model in models if model.id == wanted]
        of_run = [model for model in models if model.about.run_id == base]
        of_name = [model for model in models if model.about.run_id.rpartition("_")[0] == base]
        newest = max((model.about.run_id for model in of_name), default="")
        candidates = exact or of_run or [m for m in of_name if m.about.run_id == newest]
        candidates = [model for model in candidates if model in exact or model.which != "file"]
        for model in candidates:
            if model in exact or model.which == which:
                return model
        if candidates:  # there was no evaluation, so none is the best
            return candidates[0]
        raise ApiError(
            404,
            f"the model {wanted[:200]!r} does not exist; GET /v1/models lists those that do",
            param="model",
            code="model_not_found",
        )

    def _list(self) -> list[KnownModel]:
        models = []
        if self.file is not None:
            models += self._model(self.file.name, "file", self.file)
        for run in list_runs(self.checkpoint_dir):
            if run.best is not None:
                models += self._model(f"{run.run_id}:best", "best", run.best)
            models += self._model(f"{run.run_id}:latest", "latest", run.latest)
        return sorted(models, key=lambda model: model.id != self.default)

    def _model(self, model_id: str, which: Which, path: Path) -> list[KnownModel]:
        """Return a model, or nothing where its file cannot be read."""
        try:
            status = path.stat()
            key = (path, status.st_size, status.st_mtime_ns)
            if key not in self._about:
                self._about[key] = describe(path)
        except (OSError, CheckpointRejected):
            return []
        if len(self._about) > MOST_REMEMBERED:
            self._about.popitem(last=False)
        return [KnownModel(model_id, which, key, self._about[key])]


def _files_in(folder: Path) -> frozenset[tuple[str, int, int]]:
    """Return names, sizes and times of the checkpoints in a folder; none: it cannot be read."""
    found = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((FILE, FOLDER)):
                    status = entry.stat(follow_symlinks=False)
                    found.add((entry.name, status.st_size, status.st_mtime_ns))
    except OSError:  # also where a file has gone in between; the next look is a second away
        pass
    return frozenset(found)


def _file_there(path: Path | None) -> frozenset[tuple[str, int, int]]:
    """Return path, size and time of one file; none: it is gone."""
    try:
        status = None if path is None else path.stat()
    except OSError:
        status = None
    if status is None:
        return frozenset()
    return frozenset({(str(path), status.st_size, status.st_mtime_ns)})


@dataclass(eq=False)
class Served:
    """A model in memory with its engine, which the batcher's thread alone may touch.

    pieces: the text of each id, as /tokenize and log-probabilities show it: of a part of a
    character its bytes, of a special token its name.
    """

    loaded: LoadedModel
    engine: Engine
    model_id: str
    pieces: list[str] = field(init=False)
    names: tuple[str, ...] = field(init=False)  # the speakers, most lines first
    user: str = field(init=False)
    character: str = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = pieces_of(self.loaded.vocabulary)
        self.names = tuple(speaker.name for speaker in self.loaded.speakers)
        self.user, self.character = default_pair(self.loaded.speakers)
        self._index = cache(lambda: training_index(self.loaded))
        self._index_lock = threading.Lock()

    def bytes_of(self, token: int) -> bytes:
        """Return what a token adds to the text, in UTF-8; of a special one it is the name."""
        added = self.loaded.vocabulary.bytes_of(token)
        return added or self.pieces[token].encode("utf-8", "surrogatepass")

    def originality_of(self, texts: Sequence[str]) -> Originality | None:
        """Return what of some texts is copied from the training text; None: that is not here.

        The first call may take seconds: it indexes that text. Several threads may call it.
        """
        with self._index_lock:
            index = self._index()
        return None if index is None else originality_of(texts, index)

    @property
    def fingerprint(self) -> str:
        """Return what the answers depend on, besides the request."""
        return f"{self.loaded.run_id}_step_{self.loaded.step}"


def pieces_of(vocabulary: Vocabulary) -> list[str]:
    """Return how the text of each id is shown.

    Source: https://platform.openai.com/docs/api-reference/completions (of a part of a character)
    """
    if vocabulary.kind == "characters":
        return vocabulary.tokens
    pieces = []
    for i, name in enumerate(vocabulary.tokens):
        added = vocabulary.bytes_of(i)
        try:
            pieces.append(added.decode() or name)
        except UnicodeDecodeError:
            pieces.append("bytes:" + "".join(f"\\x{byte:02x}" for byte in added))
    return pieces


class LoadedModels:
    """Loads models when they are first asked, and keeps the two that were asked last.

    compiles: the step of a loaded model is compiled in a thread beside it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        batcher: Batcher,
        device: torch.device,
        *,
        slots: int = 16,
        compiles: bool = False,
    ) -> None:
        self.catalogue = catalogue
        self.batcher = batcher
        self.device = device
        self.slots = slots
        self.compiles = compiles
        self._loaded: OrderedDict[Identity, Served] = OrderedDict()
        self._alive: weakref.WeakSet[Served] = weakref.WeakSet()
        self._loading = asyncio.Lock()

    def is_loaded(self, model: KnownModel) -> bool:
        return model.identity in self._loaded

    async def list(self) -> list[KnownModel]:
        """Return all models that can be asked."""
        return await asyncio.to_thread(self.catalogue.models)

    async def find(self, name: str | None) -> KnownModel:
        """Return the model of a name. Raises: ApiError."""
        if self.catalogue.is_fresh:
            return self.catalogue.find(name)
        return await asyncio.to_thread(self.catalogue.find, name)

    async def get(self, name: str | None) -> Served:
        """Return the model of a name, loaded.

        The latest checkpoint of a run is looked up each time; whoever has an older one in use keeps
        it to the end. Raises: ApiError.
        """
        model = await self.find(name)
        served = self._loaded.get(model.identity)
        if served is not None:
            self._loaded.move_to_end(model.identity)
            return served
        async with self._loading:
            try:
                return await self._load(model)
            except CheckpointRejected:
                # training removes old files; what took its place is there by now
                self.catalogue.look_again()
            model = await self.find(name)
            try:
                return await self._load(model)
            except CheckpointRejected as error:
                raise ApiError(503, str(error), code="model_not_loaded") from error

    async def load_default(self) -> None:
        """Load the model that answers where a request names none. Raises: CheckpointRejected."""
        try:
            await self.get(None)
        except ApiError as error:
            raise CheckpointRejected(error.message) from error

    async def _load(self, model: KnownModel) -> Served:
        if model.identity in self._loaded:
            return self._loaded[model.identity]
        self._make_room(model)
        loaded = await asyncio.to_thread(load_model, model.path, self.device, read_start)
        engine = await self.batcher.run(
            lambda: Engine(loaded.model, loaded.vocabulary, slots=self.slots)
        )
        served = Served(loaded, engine, model.id)
        self._loaded[model.identity] = served
        self._alive.add(served)
        if self.compiles and model.which != "latest":
            threading.Thread(target=_compile, args=(engine,), daemon=True).start()
        return served

    def _make_room(self, model: KnownModel) -> None:
        """Drop what was asked longest ago, or is replaced by a newer file. Raises: ApiError."""
        for identity, served in list(self._loaded.items()):
            replaced = model.which == "latest" or identity[0] == model.path
            if replaced and served.model_id == model.id:
                del self._loaded[identity]
        while len(self._loaded) >= MOST_LOADED:
            self._loaded.popitem(last=False)
        if self.compiles or len(self._alive) >= MOST_ALIVE:
            gc.collect()  # a compiled step may hold circles of references
        if len(self._alive) >= MOST_ALIVE:
            raise too_busy(f"{len(self._alive)} models are writing at the moment; try again")


def _compile(engine: Engine) -> None:
    from chatgot.sampling.decoding import CompileFailed

    try:
        engine.compile()
    except CompileFailed as error:
        logger.info("sampling stays without a compiled step: %s", error)
