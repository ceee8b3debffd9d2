"""Print as JSON how far an exported model in transformers is from ours, in fp32.

    python benchmarks/exported_to_transformers.py job.json

A side of the part `exports` of scripts/benchmark.py. Letters: B texts, T tokens, V vocabulary.
"""

import json

import torch
import transformers
from torch import Tensor

from benchmarks.exported_model import Ours, largest, logits_of, read_job
from chatgot.exchange.to_transformers import HF


def main() -> None:
    """Export a model, read it with transformers, compare."""
    ours = Ours(read_job())
    folder = ours.export(HF, "fp32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs.eval()  # type: ignore[no-untyped-call] # untyped there
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def difference(ids: Tensor) -> float:
        with torch.no_grad():
            found = theirs(input_ids=ids[None]).logits[0]  # (T, V)
        return largest(found - logits_of(ours.loaded.model, ids))

    texts = [window.text for window in ours.windows.windows]
    ragged = [text[: len(text) * 2 // (2 + i)] for i, text in enumerate(texts)]
    batch = tokenizer(ragged, return_tensors="pt", padding=True)
    with torch.no_grad():
        padded = theirs(**batch).logits  # (B, T, V)
    of_batch = 0.0
    for row, text in zip(padded, ragged, strict=True):
        ids = torch.tensor(ours.vocabulary.encode(text))
        of_batch = max(of_batch, largest(row[: len(ids)] - logits_of(ours.loaded.model, ids)))

    prompt = tokenizer(ours.prompt, return_tensors="pt")
    made = theirs.generate(**prompt, do_sample=False, max_new_tokens=ours.tokens_within)
    new = made[0, prompt["input_ids"].shape[1] :]
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    figures = {
        "parameters": ours.loaded.model.parameter_count(),
        "text": ours.windows.source,
        "largest_logit": largest(logits_of(ours.loaded.model, ours.whole_context())),
        "transformers_single_logits": difference(ours.windows.windows[-1].ids),
        "transformers_padded_logits": of_batch,
        "transformers_context_logits": difference(ours.whole_context()),
        "transformers_greedy_equal": text == ours.greedy(ours.loaded.model, ours.tokens_within),
        "transformers_greedy_characters": len(text),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
