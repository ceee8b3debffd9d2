"""Model folders for tests of reading: those that we export, and words of theirs to change."""

import json
from pathlib import Path
from typing import Any

from plain_models import loaded_model

from chatgot.exchange.plain_safetensors import SAFETENSORS
from chatgot.exchange.to_transformers import HF
from chatgot.sampling.loading import LoadedModel

CHARACTERS = "\n ,.:?EFGIKLNOQUabcdefghiklmnoprstuvwyé漢"


def exported_folder(folder: Path, kind: str = "qwen3", format_name: str = "hf") -> LoadedModel:
    """Export a random model of a kind into a folder; return the model."""
    loaded = loaded_model(kind, CHARACTERS)
    write = HF.write if format_name == "hf" else SAFETENSORS.write
    write(loaded, "fp32", folder)
    return loaded


def change_json(path: Path, **values: Any) -> None:
    """Set keys at the top of a JSON file; the value `...` takes a key away."""
    content = json.loads(path.read_bytes()) | values
    kept = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def split_file(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a .safetensors file, and the bytes behind it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def joined_file(header: object, data: bytes) -> bytes:
    """Return a .safetensors file; the header may be JSON, or bytes."""
    words = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(words).to_bytes(8, "little") + words + data
