"""An engine that writes what its script says, for conversations without a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chatgot.data.vocabulary import Characters
from chatgot.sampling.engine import Completion, Request, Token
from chatgot.sampling.speakers import Speaker

VOCABULARY = Characters("\n\x07\x1b\x9b" + "".join(map(chr, range(32, 127))))
SPEAKERS = (
    Speaker("HAMLET", 1500, 0.5, "HORATIO"),
    Speaker("HORATIO", 300, 0.3, "HAMLET"),
    Speaker("LADY MACBETH", 200, 0.2, "HAMLET"),
)


def counted(request: Request) -> str:
    """Return an answer that shows the seed and the choice it was drawn with."""
    return f"answer {request.controls.seed}.{request.choice}\n\n"


@dataclass
class ScriptedEngine:
    """Writes, a character a step, what its script says; it draws nothing.

    likely: the names in the order of their probability; those not there are least likely.
    """

    script: Callable[[Request], str] = counted
    likely: Sequence[str] = ()
    context: int = 256
    requests: list[Request] = field(default_factory=list)
    growing: list[tuple[Completion, str]] = field(default_factory=list)

    def add(self, request: Request) -> Completion:
        self.requests.append(request)
        completion = Completion(request)
        self.growing.append((completion, self.script(request)))
        return completion

    def cancel(self, completion: Completion) -> None:
        if completion.finish_reason is None:
            completion.finish_reason = "cancelled"

    def step(self) -> list[Completion]:
        growing = [pair for pair in self.growing if pair[0].finish_reason is None]
        for completion, text in growing:
            rest = text[len(completion.text) :]
            if not rest:
                completion.finish_reason = "stop"
            elif len(completion.tokens) == completion.request.controls.max_new_tokens:
                completion.finish_reason = "length"
            else:
                completion.text += rest[0]
                completion.tokens.append(Token(VOCABULARY.encode(rest[0])[0], -0.5))
        return [completion for completion, _ in growing]

    def rank(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[float]:
        names = [VOCABULARY.decode(list(ids)).removesuffix(":\n") for ids in continuations]
        places = [self.likely.index(name) if name in self.likely else 9 for name in names]
        return [-0.5 * place for place in places]

    def prompts(self) -> list[str]:
        """Return what the model has read, one text for each answer."""
        return [VOCABULARY.decode(list(request.prompt)) for request in self.requests]
