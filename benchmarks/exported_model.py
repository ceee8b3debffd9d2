"""What the programs of the part `exports` share: the model, texts, and what our engine makes of it.

Letters: T tokens, V vocabulary.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import chatgot
from chatgot.config_file import load_config
from chatgot.data.vocabulary import END_OF_TEXT_ID, Characters
from chatgot.exchange.exporting import export
from chatgot.exchange.formats import Dtype, Format
from chatgot.exchange.held_out import Windows, windows_for
from chatgot.exchange.importing import read_start
from chatgot.model.gpt import GPT, build_model, evaluating
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Engine, Request
from chatgot.sampling.loading import LoadedModel, load_model
from chatgot.sampling.picking import find_checkpoint_file

NEW_TOKENS = 300  # of a greedy text
PROMPT_TOKENS = 16
# Up to four bytes each; "\u200d" joins two emoji
BEYOND_ASCII = "é ñ ß À “x” ‘y’ — … 漢字 🐉 👩\u200d🚀\t\n\n\n  ø"
ASCII = "".join(map(chr, range(32, 127)))
RANDOM_CHARACTERS = "".join(sorted({*ASCII, *BEYOND_ASCII}))
RANDOM_RANGE = 0.1  # of the weights; with smaller ones the text would be one character
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Job:
    """What to measure: a checkpoint's model, or a random one of a configuration's shape."""

    checkpoint: str | None
    config: str | None
    overrides: list[str]
    rounds: int
    exports: str  # the folder for them


def write_job(args: argparse.Namespace, folder: Path) -> Path:
    """Write what the command line asks for as JSON; return the file.

    Raises: UserError for a model or a configuration that is not there.
    """
    checkpoint = None
    config = None
    if args.config is None:
        checkpoint = str(find_checkpoint_file(None, checkpoint_dir=args.folder / "checkpoints"))
    else:
        load_config(args.config, args.set)
        config = str(args.config)
    path = folder / "job.json"
    job = Job(checkpoint, config, args.set, args.rounds, str(folder))
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")
    return path


def read_job() -> Job:
    """Return the job that the command line of a program names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))


class Ours:
    """Our side: a model, windows of text, and what it computes and writes."""

    def __init__(self, job: Job) -> None:
        self._exports = Path(job.exports)
        self.loaded = _trained(job.checkpoint) if job.checkpoint else _random(job)
        self.windows: Windows = windows_for(self.loaded)
        self.vocabulary = self.loaded.vocabulary
        self.context = self.loaded.config.model.max_seq_length
        start = self.windows.windows[0].ids[:PROMPT_TOKENS].tolist()
        self.prompt = self.vocabulary.decode(start)
        # other programs write no further than the context
        self.tokens_within = min(NEW_TOKENS, self.context - len(self.prompt_ids))

    @property
    def prompt_ids(self) -> list[int]:
        return self.vocabulary.encode(self.prompt)

    def export(self, exported_as: Format, dtype: Dtype) -> Path:
        """Export the model, proven; return the folder."""
        folder = self._exports / f"{exported_as.name}_{dtype}"
        export(self.loaded, exported_as, dtype, folder, self.windows)
        return folder

    def greedy(self, model: GPT, new_tokens: int) -> str:
        """Return what our engine writes after the prompt with a model's weights."""
        engine = Engine(model, self.vocabulary, slots=1)
        controls = Controls(temperature=0.0, max_new_tokens=new_tokens)
        request = Request(tuple(self.prompt_ids), controls)
        return engine.complete([request])[0].text

    def whole_context(self) -> Tensor:
        """Return as many ids as the context has, (T,)."""
        ids = torch.cat([window.ids for window in self.windows.windows])
        return ids.repeat(-(-self.context // len(ids)))[: self.context]


def logits_of(model: GPT, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of a model for ids (T,)."""
    with evaluating(model), torch.no_grad():
        logits: Tensor = model(ids[None])[0][0]  # (T, V)
    return logits


def largest(differences: Tensor) -> float:
    """Return the largest absolute value."""
    return float(differences.abs().max())


def _trained(checkpoint: str) -> LoadedModel:
    return load_model(Path(checkpoint), CPU, read_start)


def _random(job: Job) -> LoadedModel:
    """Return a model with random weights, which never ends a text."""
    assert job.config is not None
    config, _ = load_config(Path(job.config), [*job.overrides, f"model.init_range={RANDOM_RANGE}"])
    vocabulary = Characters(RANDOM_CHARACTERS)
    model = build_model(config.model, len(vocabulary), CPU, 1)
    with torch.no_grad():
        model.head.weight[END_OF_TEXT_ID] = 0  # a logit of 0 is not the largest one
    return LoadedModel(
        model=model.requires_grad_(False).eval(),
        vocabulary=vocabulary,
        speakers=(),
        run_id="random_20250102-030405",
        step=0,
        val_loss=None,
        path=Path("random.pt"),
        config=config,
        from_scratch=True,
        data_sha256="",
        data_tokens=None,
        versions={"chatgot": chatgot.__version__},
    )
