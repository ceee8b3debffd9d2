"""What does the README.md of an export say? A model card, as Hugging Face's pages show it.

It says nothing of the training text but its hash and size, and no speaker's name but the default
pair and those of `data.learn_from`.
Source of the front matter: https://huggingface.co/docs/hub/model-cards
"""

import re
import shlex
from pathlib import Path

from chatgot import __version__
from chatgot.config import Config, DataConfig, PathsConfig
from chatgot.config_file import effective_yaml, load_config
from chatgot.data.corpus import DEFAULT_TEXT_SHA256
from chatgot.data.mixture import name_meant
from chatgot.data.text_sources import listed_paths, source_names
from chatgot.data.vocabulary import Characters
from chatgot.errors import ConfigError
from chatgot.exchange.formats import Dtype, Format
from chatgot.exchange.known_formats import FORMATS
from chatgot.exchange.proof import Proof
from chatgot.sampling.loading import LoadedModel
from chatgot.sampling.speakers import default_pair
from chatgot.shipped import recipes_folder

# What a page of Hugging Face takes the files for
LIBRARIES = {"hf": "transformers", "gguf": "gguf"}
OUR_LIBRARY = "chatgot"
VERSIONS = ("chatgot", "torch", "python", "device")  # that a card names, in this order
# A checkpoint is data: nothing else gets into a page
PLAIN_VERSION = re.compile(r"[\w.+-]{1,40}")
PLAIN_NAME = re.compile(r"\w[\w .+-]*")


def model_card(
    loaded: LoadedModel,
    exported_as: Format,
    dtype: Dtype,
    folder: Path,
    proof: Proof,
    remarks: list[str],
) -> str:
    """Return the README.md of an export whose files are in a folder, of whatever name."""
    sections = [
        _front_matter(loaded, exported_as),
        f"# {_plain(loaded.run_id)}",
        _introduction(loaded, exported_as, dtype),
        "## Use\n\n" + _use(loaded, exported_as.how_to_use(folder, Path())),
        "## Model\n\n" + _table(_shape(loaded)),
        "## Training\n\n" + _training(loaded),
        "## Proof\n\n" + _listed(proof.lines()),
        "## Limits\n\n" + _listed([*remarks, *_limits(loaded)]),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(loaded: LoadedModel, exported_as: Format) -> str:
    unit = "character-level" if isinstance(loaded.vocabulary, Characters) else "subwords"
    lines = [
        "---",
        f"library_name: {LIBRARIES.get(exported_as.name, OUR_LIBRARY)}",
        "pipeline_tag: text-generation",
        "tags:",
        "- chatgot",
        f"- {unit}",
        "# license: yours to choose; mind that of the training text",
        "---",
    ]
    return "\n".join(lines)


def _introduction(loaded: LoadedModel, exported_as: Format, dtype: Dtype) -> str:
    millions = loaded.model.parameter_count() / 1e6
    reader = FORMATS.get(exported_as.name, exported_as.name)
    trained = "trained from scratch" if loaded.from_scratch else "another model, trained further"
    return (
        f"A language model of {millions:.1f} M parameters, {trained} on one text with ChatGoT. "
        f"This is its export in the format `{exported_as.name}`, {reader}, with weights in {dtype}."
    )


def _use(loaded: LoadedModel, lines: list[str]) -> str:
    """Return how the export is used: what is typed in its folder, and what a prompt looks like."""
    commands = "\n".join(lines)
    text = f"In this folder:\n\n```\n{commands}\n```"
    user, character = default_pair(loaded.speakers)
    if character:
        text += (
            "\n\nA prompt is a dialogue, as in the training text: the line of a speaker "
            f"({_code(f'{user}:')}), what is said, a blank line. It ends with the line of the one "
            f"who shall answer ({_code(f'{character}:')})."
        )
    return text


def _shape(loaded: LoadedModel) -> dict[str, str]:
    """Return the rows of the table of sizes."""
    model = loaded.config.model
    unit = "characters" if isinstance(loaded.vocabulary, Characters) else "subwords"
    heads = f"{model.n_head} of {model.head_size}"
    if model.kv_heads != model.n_head:
        heads += f", {model.kv_heads} of keys and values"
    kinds = {
        "gpt": "gpt: that of GPT-2, learned positions, LayerNorm, GELU",
        "modern": "modern: that of Qwen3, rotary positions, RMSNorm, SwiGLU",
    }
    return {
        "architecture": kinds[model.architecture],
        "parameters": f"{loaded.model.parameter_count():,}",
        "layers": str(model.n_layers),
        "width": str(model.d_model),
        "heads": heads,
        "context": f"{model.max_seq_length:,} tokens",
        "vocabulary": f"{len(loaded.vocabulary):,} tokens: {unit} and the end of a text",
    }


def _training(loaded: LoadedModel) -> str:
    text = f"SHA-256 `{loaded.data_sha256}`"
    if loaded.data_sha256 == DEFAULT_TEXT_SHA256:
        text = f"Shakespeare's plays, ChatGoT's default text, {text}"
    if loaded.data_tokens is not None:
        text += f", {loaded.data_tokens:,} tokens"
    rows = {
        "text": f"{text}; {_held_out(loaded.config.data)}",
        "step": f"{loaded.step:,}",
    }
    if loaded.config.data.replay:
        replayed = f"{100 * loaded.config.data.replay:g} %"
        rows["old text"] = f"{replayed} of what it trained on is text of the model before it"
    if loaded.val_loss is not None:
        rows["held-out loss"] = f"{loaded.val_loss:.4f} nats/token"
        if loaded.val_bits_per_byte is not None:
            rows["held-out loss"] += f", {loaded.val_bits_per_byte:.4f} bits/byte"
    versions = _versions(loaded)
    if versions:
        rows["trained with"] = versions
    rows["exported with"] = f"chatgot {__version__}"
    return f"{_table(rows)}\n\n{_repeat(loaded)}"


def _held_out(data: DataConfig) -> str:
    """Return what of the text was held out, as a sentence."""
    if data.shards is not None:
        return "some of its documents, chosen by their content, were held out"
    share = f"{100 * data.test_split:g} %"
    if data.split == "documents":
        return f"about {share} of its documents, chosen by their content, were held out"
    sources = len(_names(data))
    each = f" of each of its {sources} sources" if sources > 1 else ""
    return f"the last {share}{each} were held out"


def _names(data: DataConfig) -> list[str]:
    """Return names for the texts of a run that say nothing of them, in the order of data.path."""
    texts = len(listed_paths(data))
    return [f"TEXT_{number}" for number in range(1, texts + 1)] if texts > 1 else ["TEXT"]


def _versions(loaded: LoadedModel) -> str:
    named = {name: loaded.versions.get(name) for name in VERSIONS}
    return ", ".join(
        f"{name} {version}"
        for name, version in named.items()
        if isinstance(version, str) and PLAIN_VERSION.fullmatch(version)
    )


def _repeat(loaded: LoadedModel) -> str:
    """Return the command that repeats the training, and all its settings."""
    config = _without_places(loaded.config)
    name = _plain(loaded.run_id.rpartition("_")[0])
    sentences = ["This command repeats the training."]
    file = name
    if _shipped(name) != config:
        file += ".yaml"
        sentences.append(f"Save the settings below as {name}.yaml first.")
    command = f"chatgot train --config {shlex.quote(file)}"
    names = _names(loaded.config.data)
    if len(names) > 1:
        command += f" --set 'data.path=[{', '.join(names)}]'"
        sentences.append(f"{names[0]} to {names[-1]} are its texts, which make that SHA-256.")
    elif loaded.config.data.shards is not None:
        command += " --set data.shards=FOLDER"
        sentences.append("FOLDER has the shards whose index has that SHA-256.")
    elif loaded.config.data.path is not None:
        command += " --set data.path=TEXT"
        sentences.append("TEXT is the text of that SHA-256.")
    if not loaded.from_scratch:
        command += " --init_from MODEL"
        sentences.append("MODEL is the one that it started from.")
    minutes = config.training.max_minutes
    if minutes is not None:
        sentences.append(f"It ends after {minutes:g} minutes: a slow machine takes fewer steps.")
    yaml = effective_yaml(config).rstrip()
    return (
        f"{' '.join(sentences)}\n\n```\n{command}\n```\n\n"
        f"<details><summary>All settings</summary>\n\n```yaml\n{yaml}\n```\n\n</details>"
    )


def _without_places(config: Config) -> Config:
    """Return a configuration that names no file and no folder, and quotes nothing of a text."""
    return config.model_copy(
        update={
            "data": _data_without_places(config.data),
            "sampling": config.sampling.model_copy(update={"prompts": []}),
            "paths": PathsConfig(),
        }
    )


def _data_without_places(data: DataConfig) -> DataConfig:
    """Return the section `data` without paths; the sources of `mixture` have names of ours."""
    mixture = None
    if data.mixture is not None:
        theirs = source_names(listed_paths(data))
        ours = dict(zip(theirs, _names(data), strict=True))
        mixture = {ours[name_meant(name, theirs)]: data.mixture[name] for name in data.mixture}
    places = {"path": None, "shards": None, "replay_path": None}
    return data.model_copy(update=places | {"mixture": mixture})


def _shipped(name: str) -> Config | None:
    """Return the settings of the configuration of this name that comes with the program."""
    path = recipes_folder() / f"{name}.yaml"
    try:
        return _without_places(load_config(path)[0]) if path.is_file() else None
    except ConfigError:
        return None


def _limits(loaded: LoadedModel) -> list[str]:
    """Return what nobody should expect of the model."""
    limits = [
        "It has learned how its training text sounds: it knows no facts and obeys no instructions.",
        "It may repeat passages of its training text word for word.",
        f"It sees at most {loaded.config.model.max_seq_length:,} tokens at once.",
    ]
    if isinstance(loaded.vocabulary, Characters):
        limits.append(
            f"It knows {len(loaded.vocabulary) - 1} characters; it can read and write no others."
        )
    return limits


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(name: str) -> str:
    """Return a name if it is neither Markdown nor a command for a shell."""
    return name if PLAIN_NAME.fullmatch(name) else "model"


def _code(text: str) -> str:
    """Return a text as code in Markdown, whatever is in it."""
    text = " ".join(text.split())
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"
