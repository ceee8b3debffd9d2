"""How does the model take its turn: who speaks next, and what is said?"""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from chatgot.chat.conversation import Conversation, plain_text
from chatgot.chat.limits import LARGEST_SEED
from chatgot.chat.names import AUTO
from chatgot.data.vocabulary import Vocabulary
from chatgot.sampling.controls import Controls
from chatgot.sampling.engine import Completion, Engine, Request
from chatgot.sampling.speakers import Speaker, default_pair
from chatgot.sampling.speeches import choose_speaker, prompt_text, speech_lines
from chatgot.sampling.suffix_index import SuffixIndex


@dataclass
class Actor:
    """A model that speaks in a conversation.

    context: tokens that it can look back on.
    controls: how its answers are drawn; their seed is that of the conversation.
    index: returns the index of its training text; None: that text is not here.
    """

    engine: Engine
    vocabulary: Vocabulary
    speakers: Sequence[Speaker]
    context: int
    controls: Controls
    index: Callable[[], SuffixIndex | None] = lambda: None

    @property
    def known(self) -> list[str]:
        """Return the names of the speakers in the training text, the one with most lines first."""
        return [speaker.name for speaker in self.speakers]

    def choose(self, conversation: Conversation, names: Sequence[str], choice: int) -> str:
        """Draw who speaks next, by the model's probability of each name's line.

        The seed, the depth and the choice decide the draw; temperature 0 takes the likeliest.
        """
        chances = choose_speaker(self.engine, self.vocabulary, conversation.speeches, names)
        if self.controls.temperature == 0 or len(chances) < 2:
            return chances[0][0]
        draw = random.Random(f"{self.controls.seed} {conversation.depth} {choice}")
        (name,) = draw.choices([name for name, _ in chances], [chance for _, chance in chances])
        return name

    def request(
        self, conversation: Conversation, name: str, choice: int, begun: str = ""
    ) -> Request:
        """Return what the engine is asked for: the next speech of a name.

        Each turn has a seed of its own, or all answers would be drawn with the same noise.

        begun: the text of this speech so far, which goes on.
        """
        speeches = conversation.speeches
        prompt = prompt_text(speeches, name) + begun if name else plain_text(speeches)
        names = {*self.known, *conversation.names, *filter(None, [name])}
        controls = replace(
            self.controls,
            seed=(self.controls.seed + conversation.depth) % LARGEST_SEED,
            stop_before_speaker=speech_lines(names) if name else None,
        )
        return Request(self.encode(prompt), controls, choice)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text; what is outside the vocabulary is replaced."""
        known, _ = self.vocabulary.replace_unknown(text)
        return tuple(self.vocabulary.encode(known))

    def is_past_context(self, completion: Completion) -> bool:
        """Return whether the beginning of the conversation has been forgotten."""
        length = len(completion.request.prompt) + len(completion.tokens)
        return completion.forgot or length > self.context

    def write(self, requests: Sequence[Request]) -> Generator[list[Completion], None, None]:
        """Yield all completions, first empty, then after each step, until all have ended.

        Whoever closes the iterator earlier cancels them.
        """
        completions = [self.engine.add(request) for request in requests]
        try:
            yield completions
            while any(completion.finish_reason is None for completion in completions):
                self.engine.step()
                yield completions
        finally:
            for completion in completions:
                self.engine.cancel(completion)


def pair_of(speakers: Sequence[Speaker], user: str | None, character: str | None) -> list[str]:
    """Return [who the person is, who answers], where one or both may not have been named.

    The one who was not named is whom the other talks to most, or one of the default pair.
    """
    first, second = default_pair(speakers)
    partners = {speaker.name: speaker.partner for speaker in speakers}
    if user is None and character in (None, AUTO):
        return [first, character or second]
    if user is None:
        partner = partners.get(character or "", "")
        return [partner or (first if character != first else second), character or ""]
    if character is None:
        return [user, partners.get(user, "") or (second if user != second else first)]
    return [user, character]
