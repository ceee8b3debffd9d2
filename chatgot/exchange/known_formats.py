"""Which formats has an export? Their names are known without torch, they themselves need it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatgot.exchange.formats import Format

# Each format, and who reads it
FORMATS = {
    "hf": "a folder for transformers",
    "gguf": "a file for llama.cpp, Ollama and LM Studio",
    "html": "one page that runs in any browser, without a network",
    "safetensors": "the weights under ChatGoT's own names",
}
DTYPES = ("fp32", "fp16", "bf16", "q8_0")


def format_named(name: str) -> "Format":
    """Return the format of this name, which is one of FORMATS."""
    if name == "hf":
        from chatgot.exchange.to_transformers import HF

        return HF
    if name == "gguf":
        from chatgot.exchange.to_gguf import GGUF

        return GGUF
    if name == "html":
        from chatgot.exchange.html_page import HTML

        return HTML
    from chatgot.exchange.plain_safetensors import SAFETENSORS

    assert name == "safetensors", name
    return SAFETENSORS
