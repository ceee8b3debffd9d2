"""The format `html`: a model as one page that opens from disk, in any browser, without a network.

The page is the server's page: chat and notebook are the same files. Instead of a server it has the
weights and a forward pass in JavaScript. Its policy allows exactly the scripts that it has, and no
request to anywhere.
"""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import ValidationError
from torch import Tensor

import chatgot
from chatgot.config import ModelConfig
from chatgot.data.subwords import Subwords
from chatgot.data.vocabulary import Characters, Vocabulary
from chatgot.errors import ExportImpossible, ImportRejected
from chatgot.exchange.formats import Dtype, Said
from chatgot.exchange.html_bundle import (
    allowed,
    bundle,
    css_in_ascii,
    fill,
    html_in_ascii,
    in_ascii,
)
from chatgot.exchange.html_subwords import SubwordsOfPage, subwords_in_page
from chatgot.exchange.html_weights import pack, rounded, unpack
from chatgot.exchange.plain_forward import PlainModel, plain_logits
from chatgot.exchange.plain_safetensors import HEAD, plain_model
from chatgot.model.gpt import GPT
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import default_pair

VERSION = 1  # of what the page says of its model
OWN_FILES = Path(__file__).parent / "page"
# not imported: exports are below the server
SHARED_FILES = Path(chatgot.__file__).parent / "serving" / "page"
SMALL = 7_500_000  # parameters: with fp16 the page has at most 16 MB
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src data:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)
DATA = rb'<script type="[\w/]+" id="%b">(.*?)</script>'


class HtmlPage:
    """Writes a model as one page, and reads it back (see Format)."""

    name = "html"
    dtypes: tuple[Dtype, ...] = ("fp16", "q8_0", "bf16", "fp32")

    def default_dtype(self, model: GPT) -> Dtype:
        """Return the dtype that keeps the page at 16 MB or less for up to 14 million parameters."""
        return "fp16" if model.parameter_count() <= SMALL else "q8_0"

    def write(self, loaded: LoadedModel, dtype: Dtype, folder: Path) -> list[str]:
        """Write the page into an empty folder; return how large it is.

        Raises: ExportImpossible for subwords of an imported model, and for weights that the dtype
        cannot hold.
        """
        content = page_of(loaded, dtype)
        path = folder / f"{loaded.run_id}.html"
        path.write_bytes(content)
        count = loaded.model.parameter_count()
        remarks = [f"{path.name}: {len(content) / 1e6:.1f} MB, {count:,} parameters in {dtype}"]
        if dtype == "q8_0" and count > SMALL:
            remarks.append(f"in fp16 it would have about {2.02 * count / 1e6:.0f} MB")
        return remarks

    def open(self, folder: Path) -> "OpenedPage":
        """Read the page of a folder. Raises: ImportRejected for one that was changed."""
        paths = sorted(folder.glob("*.html"))
        if len(paths) != 1:
            raise ImportRejected(f"{folder}: expected one page (.html), found {len(paths)}")
        return read_page(paths[0])

    def as_rounded(self, model: GPT, dtype: Dtype) -> GPT:
        """Return a model with its matrices rounded as the page has them; fp32: the model itself."""
        if dtype == "fp32":
            return model
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.data = rounded(parameter.data, dtype)
        other.tie()
        return other

    def how_to_use(self, folder: Path, named: Path | None = None) -> list[str]:
        """Return the one line that says what to do with the page."""
        path = (named or folder) / next(folder.glob("*.html")).name
        return [f"open {path.as_posix()} in a browser; it needs no network"]


@dataclass(frozen=True)
class OpenedPage:
    """A written page, read back (see Opened)."""

    vocabulary: Characters | SubwordsOfPage
    model: PlainModel
    about: Mapping[str, Any]

    @property
    def said(self) -> Said:
        """Return what the page says of its model; the end of a text is always the first token."""
        context = self.about["model"]["max_seq_length"]
        return Said(context, len(self.model.embedding), self.vocabulary.end_of_text_id)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text by the vocabulary of the page."""
        return self.vocabulary.encode(text)

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits (T, V), fp64, of one sequence of ids (T,)."""
        return plain_logits(self.model, ids)


def page_of(loaded: LoadedModel, dtype: Dtype) -> bytes:
    """Return the page of a model. Raises: ExportImpossible (see HtmlPage.write)."""
    about = _about(loaded, dtype)
    tensors = loaded.model.state_dict()
    if loaded.config.model.tie_embeddings:
        del tensors[HEAD]
    for name, tensor in tensors.items():
        if not rounded(tensor, dtype).isfinite().all():
            raise ExportImpossible(
                f"--dtype {dtype}: {name} has a weight of {tensor.abs().max():g}, "
                f"more than {dtype} can hold; use --dtype fp32"
            )
    weights = pack(tensors, dtype)
    content = json.dumps(about | {"weights": weights.about})
    # "<" could begin a tag that ends the script
    return _assembled(content.replace("<", "\\u003c"), weights.text, loaded.run_id)


def _about(loaded: LoadedModel, dtype: Dtype) -> dict[str, Any]:
    """Return what the page says of its model, without the weights."""
    user, character = default_pair(loaded.speakers)
    sampling = loaded.config.sampling
    drawing = {"top_k": sampling.top_k, "top_p": sampling.top_p}
    speakers = [
        {"name": speaker.name, "lines": speaker.lines, "partner": speaker.partner}
        for speaker in loaded.speakers
    ]
    return {
        "version": VERSION,
        "run_id": loaded.run_id,
        "step": loaded.step,
        "val_loss": loaded.val_loss,
        "val_bits_per_byte": loaded.val_bits_per_byte,
        "data_sha256": loaded.data_sha256,
        "parameters": loaded.model.parameter_count(),
        "dtype": dtype,
        "model": loaded.config.model.model_dump(mode="json"),
        **_tokens_of(loaded.vocabulary),
        "speakers": speakers,
        "user": user,
        "character": character,
        "sampling": {key: value for key, value in drawing.items() if value is not None},
    }


def _tokens_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what the page says of the tokens. Raises: ExportImpossible."""
    if isinstance(vocabulary, Characters):
        return {"characters": vocabulary.characters}
    assert isinstance(vocabulary, Subwords)
    return {"subwords": subwords_in_page(vocabulary)}


def _vocabulary(about: Mapping[str, Any]) -> Characters | SubwordsOfPage:
    """Return the tokens that a page says it has. Raises: KeyError, TypeError, ValueError."""
    if "subwords" in about:
        return SubwordsOfPage(about["subwords"])
    return Characters(about["characters"])


def _assembled(about: str, weights: bytes, run_id: str) -> bytes:
    """Return the file, in windows-1252: all but the weights is ASCII."""
    modules = page_modules()
    markup = (SHARED_FILES / "index.html").read_text(encoding="utf-8")
    worker = bundle(modules, "worker.js")
    engine = f'function chatgotEngine(port, sliceMs) {{\n{worker}modules["worker.js"]'
    engine += ".serve(port, sliceMs);\n}\n"
    page = f"(() => {{\n{bundle(modules, 'app.js')}}})();\n"
    theme = in_ascii(modules["theme.js"])
    styles = [SHARED_FILES / "style.css", OWN_FILES / "about.css"]
    style = css_in_ascii("".join(path.read_text(encoding="utf-8") for path in styles))
    scripts = " ".join(allowed(script) for script in (theme, engine, page))
    texts = {
        "policy": POLICY.format(scripts=scripts, style=allowed(style)),
        "version": chatgot.__version__,
        "store": f"{crc32(about.encode()):08x}-",
        "icon": _cut(markup, r'<link rel="icon" href="([^"]*)">'),
        "style": style,
        "theme": theme,
        "theme_button": _cut(markup, r'(<button type="button" id="theme".*?</button>)'),
        "chat": _cut(markup, r'^(<section id="chat".*?^</section>)'),
        "notebook": _cut(markup, r'^(<section id="notebook".*?^</section>)'),
        "about": about,
        "engine": engine,
        "page": page,
    }
    for script in (theme, engine, page):
        assert "</script" not in script.lower(), run_id
    slots = {name: html_in_ascii(text).encode() for name, text in texts.items()}
    template = (OWN_FILES / "index.html").read_bytes()
    return fill(template, slots | {"weights": weights})


def page_modules() -> dict[str, str]:
    """Return the scripts of the page by name; one of our own replaces the server's of its name."""
    paths = [*SHARED_FILES.glob("*.js"), *OWN_FILES.glob("*.js")]
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def _cut(markup: str, pattern: str) -> str:
    """Return a part of the server's page."""
    match = re.search(pattern, markup, re.DOTALL | re.MULTILINE)
    assert match is not None, pattern
    return match[1]


def read_page(path: Path) -> OpenedPage:
    """Return what a page says of its model, and the model. Raises: ImportRejected."""
    try:
        content = path.read_bytes()
        about = json.loads(_data(content, b"about"))
        if about["version"] != VERSION:
            raise ImportRejected(
                f"{path}: a page of version {about['version']}, expected {VERSION}"
            )
        tensors = unpack(_data(content, b"weights"), about["weights"])
        config = ModelConfig.model_validate(about["model"])
        return OpenedPage(_vocabulary(about), plain_model(config, tensors), about)
    except KeyError as error:
        raise ImportRejected(f"{path}: {error} is missing") from error
    except (OSError, ValueError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ImportRejected(f"{path}: cannot be read back: {reason}") from error


def _data(content: bytes, name: bytes) -> bytes:
    match = re.search(DATA % name, content, re.DOTALL)
    if match is None:
        raise ValueError(f"a page without {name.decode()}")
    return match[1]


HTML = HtmlPage()
