"""Is an export the same model? The written files are read back, and their logits compared.

Letters: T tokens, V vocabulary.
"""

import copy
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from torch import Tensor

from chatgot.errors import ProofFailed, UserError
from chatgot.exchange.formats import Dtype, Format, Opened, Said
from chatgot.exchange.held_out import Window, Windows
from chatgot.model.gpt import GPT, evaluating
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import default_pair
from chatgot.sampling.speeches import Speech, prompt_text

LARGEST_DIFFERENCE = 1e-4  # of two logits
# How far a right rounding moves a weight, as a share of the largest of its row; twice as much is
# accepted. q8_0: half a step of 127
FARTHEST: dict[Dtype, float] = {"fp16": 2**-11, "bf16": 2**-9, "q8_0": 1 / 254}
SMALLEST = 1e-5  # what fp16, and q8_0's scales in it, may lose of weights near zero


@dataclass(frozen=True)
class Rounding:
    """What the dtype costs: the rounded weights against those of the run.

    difference: largest of two logits; loss: by how much the mean loss grows, nats per token.
    """

    difference: float
    loss: float


@dataclass(frozen=True)
class Proof:
    """What was compared and found.

    source: where the texts come from; difference: largest of two logits; largest_logit: largest
    absolute one; rounding: None with fp32.
    """

    windows: int
    tokens: int
    source: str
    difference: float
    largest_logit: float
    rounding: Rounding | None

    def lines(self) -> list[str]:
        """Return what was found, for people."""
        lines = [
            f"read back, the files give the model's logits: largest difference "
            f"{self.difference:.1e} (at most {LARGEST_DIFFERENCE:.0e} is accepted), "
            f"largest logit {self.largest_logit:.1f}",
            f"compared on {self.windows} windows, {self.tokens:,} tokens, of {self.source}; "
            "their tokens are equal",
        ]
        if self.rounding is not None:
            lines.append(
                "rounding the weights changes the logits by at most "
                f"{self.rounding.difference:.1e}, the loss by {self.rounding.loss:+.5f} nats/token"
            )
        return lines


def prove(
    loaded: LoadedModel, exported_as: Format, dtype: Dtype, folder: Path, held_out: Windows
) -> Proof:
    """Read an export back and compare it with the model, rounded to the dtype as the export is.

    Raises: ProofFailed, naming the window and the token, if ids or logits differ.
    """
    try:
        opened = exported_as.open(folder)
    except UserError as error:
        # the folder has a temporary name
        reason = str(error).replace(f"{folder}/", "").replace(str(folder), "the export")
        raise ProofFailed(
            f"the proof failed: what was written is not readable: {reason}"
        ) from error
    _compare_said(opened.said, loaded)
    if not held_out.windows:
        raise ProofFailed("the proof failed: there is no text to compare on")
    rounded = exported_as.as_rounded(loaded.model, dtype)
    if rounded is not loaded.model:
        _check_rounding(loaded.model, rounded, dtype)
    # in fp64, as what is read back: sums of fp32 in another order would hide small errors
    exact = copy.deepcopy(rounded).double()
    difference = 0.0
    largest_logit = 0.0
    rounding: list[tuple[float, float]] = []  # of each window: logits, sum of the losses
    for window in held_out.windows:
        _compare_ids(opened, window, loaded)
        expected = _logits(exact, window.ids)  # (T, V)
        found = _read_back(opened, window, expected)  # (T, V)
        difference = max(difference, _compare_logits(found, expected, window, loaded))
        largest_logit = max(largest_logit, float(expected.abs().max()))
        if rounded is not loaded.model:
            before = _logits(loaded.model, window.ids)  # (T, V)
            gap = _loss(found, window.ids) - _loss(before, window.ids)
            rounding.append((float((found - before).abs().max()), gap))
    tokens = sum(len(window.ids) for window in held_out.windows)
    predicted = tokens - len(held_out.windows)
    costs = None
    if rounding:
        changes, gaps = zip(*rounding, strict=True)
        costs = Rounding(max(changes), sum(gaps) / max(1, predicted))
    return Proof(len(held_out.windows), tokens, held_out.source, difference, largest_logit, costs)


def _check_rounding(model: GPT, rounded: GPT, dtype: Dtype) -> None:
    """Raise ProofFailed unless each weight is about what it was before it was rounded.

    The files are compared with the rounded model, which the same code has rounded.
    """
    for (name, before), after in zip(model.named_parameters(), rounded.parameters(), strict=True):
        largest = before.abs().amax(dim=-1, keepdim=True)  # of each row
        moved = (after - before).abs()
        if not bool((moved <= 2 * FARTHEST[dtype] * largest + SMALLEST).all()):
            raise ProofFailed(
                f"the proof failed: rounded to {dtype}, {name} is not what it was: "
                f"a weight moved by up to {float(moved.max()):.2g}, "
                f"the largest is {float(largest.max()):.2g}"
            )


def _compare_said(found: Said, loaded: LoadedModel) -> None:
    """Raise ProofFailed unless the files say the model's sizes and how a text ends."""
    expected = Said(
        context=loaded.model.cfg.max_seq_length,
        vocab_size=loaded.model.vocab_size,
        end_of_text_id=loaded.vocabulary.end_of_text_id,
    )
    for name, value in asdict(expected).items():
        said = getattr(replace(found, chat_template=None), name)
        if said != value:
            raise ProofFailed(
                f"the proof failed: the files say {name} {said!r}, the model has {value!r}"
            )
    if found.chat_template is not None:
        _compare_prompt(found.chat_template, loaded)


def _compare_prompt(template: str, loaded: LoadedModel) -> None:
    """Raise ProofFailed unless the written template makes our prompt of three speakers' talk."""
    user, character = default_pair(loaded.speakers)
    speeches = [
        Speech("", "ACT I"),
        Speech(user, 'Who\'s "there"?\nSay {{ it }}.'),
        Speech("MESSENGER", "I, my lord: — é 漢字 🐉"),
        Speech(character, "Then speak.  "),
        Speech(user, "..."),
    ]
    roles = ("system", "user", "user", "assistant", "user")
    messages: list[dict[str, str]] = []
    for role, speech in zip(roles, speeches, strict=True):
        named = {"name": speech.name} if speech.name == "MESSENGER" else {}
        messages.append({"role": role, "content": speech.text, **named})
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        prompt = jinja.from_string(template).render(messages=messages, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        raise ProofFailed(f"the proof failed: the chat template breaks: {error}") from error
    if prompt != prompt_text(speeches, character):
        raise ProofFailed(
            "the proof failed: the chat template makes another prompt of a conversation"
        )


def _compare_ids(opened: Opened, window: Window, loaded: LoadedModel) -> None:
    """Raise ProofFailed unless the written tokenizer gives a window's text the same ids."""
    expected = window.ids.tolist()
    try:
        found = opened.encode(window.text)
    except KeyError as error:
        raise ProofFailed(
            f"the proof failed: {window.place}: the written vocabulary lacks {error}"
        ) from error
    if found == expected:
        return
    pairs = enumerate(zip_longest(found, expected))
    place, (one, other) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
    raise ProofFailed(
        f"the proof failed: {window.place}: the written tokenizer gives other ids: "
        f"token {place} is {_named(one, loaded)}, expected {_named(other, loaded)}"
    )


def _named(token: int | None, loaded: LoadedModel) -> str:
    """Return an id with its token."""
    if token is None:
        return "missing"
    tokens = loaded.vocabulary.tokens
    return f"{token} ({tokens[token]!r})" if 0 <= token < len(tokens) else f"{token} (no token)"


def _read_back(opened: Opened, window: Window, expected: Tensor) -> Tensor:
    """Return the logits of the written files. Raises: ProofFailed for those of another shape."""
    try:
        with torch.no_grad():
            found = opened.logits(window.ids).detach().double().cpu()
    except (RuntimeError, LookupError, ValueError) as error:  # sizes that do not fit each other
        reason = str(error).splitlines()[0]
        raise ProofFailed(
            f"the proof failed: {window.place}: the files do not compute: {reason}"
        ) from error
    if found.shape != expected.shape:
        raise ProofFailed(
            f"the proof failed: {window.place}: the files give logits of shape "
            f"{tuple(found.shape)}, expected {tuple(expected.shape)}"
        )
    return found


def _compare_logits(found: Tensor, expected: Tensor, window: Window, loaded: LoadedModel) -> float:
    """Return the largest difference of two logits. Raises: ProofFailed if it is too large."""
    differences = (found - expected).abs().amax(dim=-1)  # (T,)
    wrong = torch.nonzero(~(differences <= LARGEST_DIFFERENCE)).flatten()  # NaN is wrong, too
    if not len(wrong):
        return float(differences.max())
    first = int(wrong[0])
    token = loaded.vocabulary.tokens[int(window.ids[first])]
    worst = float("nan") if bool(differences.isnan().any()) else float(differences.max())
    raise ProofFailed(
        f"the proof failed: {window.place}: from token {first} ({token!r}) on, logits of the files "
        f"differ from the model's by up to {worst:.2g}\n"
        f"(at most {LARGEST_DIFFERENCE:.0e} is accepted; {len(wrong)} of {len(window.ids)} tokens "
        f"differ; largest logit {float(expected.abs().max()):.1f})"
    )


def _logits(model: GPT, ids: Tensor) -> Tensor:
    """Return the logits of a model, (T, V) fp64, for ids (T,)."""
    device = model.head.weight.device
    with evaluating(model):
        logits: Tensor = model(ids[None].to(device))[0][0]  # (T, V)
    return logits.double().cpu()


def _loss(logits: Tensor, ids: Tensor) -> float:
    """Return the sum of the losses of all tokens but the first, nats."""
    return float(F.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
