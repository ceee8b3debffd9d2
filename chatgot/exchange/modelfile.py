"""What does the Modelfile beside a GGUF say? How Ollama makes a prompt of messages, and draws.

Source: https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx
"""

from chatgot.config import SamplingConfig
from chatgot.exchange.chat_template import ollama_template, stop_strings

NEW_TOKENS = 400  # of an answer at most; a small model may never end one
QUOTES = '"""'  # around a text with line feeds; in it, a Modelfile knows no escapes
END_OF_SPEECH = "\n\n"


def modelfile(
    file_name: str, user: str, character: str, context: int, sampling: SamplingConfig
) -> str:
    """Return the Modelfile.

    user, character: who speaks for the roles `user` and `assistant`; empty: nobody is named.
    context: tokens.
    """
    parameters = {
        "num_ctx": context,
        "num_predict": min(NEW_TOKENS, context),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,  # 0: off
        "top_p": 1 if sampling.top_p is None else sampling.top_p,
        "min_p": 0,
        "repeat_penalty": 1,  # off: among characters, the same ones must come again and again
    }
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{file_name}",
        f"TEMPLATE {QUOTES}{ollama_template(user, character)}{QUOTES}",
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        *(f"PARAMETER stop {QUOTES}{stop}{QUOTES}" for stop in _stops(user, character)),
    ]
    return "\n".join(lines) + "\n"


def _stops(user: str, character: str) -> list[str]:
    """Return the strings before which an answer ends: where its speech ends, or another begins.

    A blank line ends a speech, whoever speaks next.
    """
    if not character:
        return []
    begins = [
        stop
        for stop in stop_strings([user, character])
        if not stop.startswith(END_OF_SPEECH) and QUOTES not in stop
    ]
    return [END_OF_SPEECH, *begins]
