"""How a text gets its run without a YAML: this machine is measured, a recipe chosen and fitted.

The measuring is in measured_speed.py, the rules are in recipe.py.

Letters: T `max_seq_length`, V vocabulary size.
"""

import json
import logging
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from chatgot.config import MIN_MINUTES, Config
from chatgot.config_file import config_of
from chatgot.data.bits_per_byte import tokens_per_byte
from chatgot.data.configured_text import check_parts, encoded
from chatgot.data.ngram_loss import difficulty
from chatgot.data.own_text import (
    DEFAULT_MINUTES,
    Candidate,
    Request,
    as_yaml,
    candidates,
    context_for,
    recipe,
    refuse_short,
)
from chatgot.data.prompts import prompts_of
from chatgot.data.token_cache import Tokens
from chatgot.data.vocabulary import Vocabulary
from chatgot.errors import OutOfMemory
from chatgot.logs.events import event
from chatgot.logs.timing import human_time
from chatgot.logs.waiting import waiting
from chatgot.machine.device import pick_device
from chatgot.machine.memory import is_out_of_memory
from chatgot.model.gpt import GPT
from chatgot.numerics.optim import last_step
from chatgot.training.chosen_yaml import yaml_with_reasons
from chatgot.training.forecast import Forecast, nats_per_bit
from chatgot.training.measured_speed import Speed, measure_speed
from chatgot.training.predicted_loss import Planned, Predicted, predict
from chatgot.training.recipe import (
    EVALUATIONS_WITHOUT_GAIN,
    LEAST_BYTES_FOR_SUBWORDS,
    LEAST_WEIGHT_DECAY,
    PASSES_FOR_CHARACTERS,
    SHARE_OF_TIME,
    TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN,
    Costs,
    Plan,
    Recipe,
    largest_in_time,
    plan,
    recipes_for_text,
    tokenizer_for,
    vocab_size_for,
    warmup_for,
)

logger = logging.getLogger(__name__)

# How many times more FLOP/s a larger model may reach than the smallest: a GPU idles between the
# small kernels of a small model. Only a guess of what is worth measuring.
HOPED_GAIN = {"cpu": 1.5, "mps": 10, "cuda": 100}
SAVED_BYTES_PER_PARAMETER = 12  # weights and two moments, 4 bytes each
SAVED_BYTES_PER_S = 100e6  # written, flushed to the disk and verified
LEAST_SAVE_S = 0.05
STEPS_BETWEEN_SAVES = 100  # the default of save_checkpoint_steps
LEAST_FOR_MULTI_TOKEN = f"{TOKENS_PER_PARAMETER_FOR_MULTI_TOKEN:g} tokens for each parameter"
PROMPT_TEXT = 1 << 22  # tokens of the training text in which prompts are looked for
# tokens of the held-out text whose bytes are counted: all of them in a text of 40 MB
COUNTED_TEXT = 1 << 22


@dataclass(frozen=True)
class Note:
    """One choice, for the log and the events."""

    text: str
    what: str
    chosen: object
    measured: dict[str, object] = field(default_factory=dict)

    def log(self) -> None:
        """Log the choice as an event."""
        extra = event("choice", what=self.what, chosen=self.chosen, measured=self.measured)
        logger.info("%s", self.text, extra=extra)


@dataclass(frozen=True)
class Choice:
    """The run that was chosen for a text: its settings, the YAML that holds them, and why."""

    config: Config
    yaml: str
    tokens: Tokens
    notes: list[Note]


@dataclass(frozen=True)
class Trial:
    """A recipe on this text."""

    recipe: Recipe
    candidate: Candidate
    context: int
    flops_per_token: int
    steps_of_a_pass: float

    @property
    def tokens_per_step(self) -> int:
        """The tokens of one optimizer step, with the context that fits the text."""
        return self.candidate.config.training.sequences_per_step * self.context

    @property
    def shortened(self) -> bool:
        """Whether the text is too short for the recipe's own context."""
        return self.context != self.candidate.config.model.max_seq_length


def choose(
    request: Request,
    vocabulary: Vocabulary | None = None,
    dry_run: bool = False,
    from_scratch: bool = True,
) -> Choice:
    """Choose the recipe and its settings for a text; takes some seconds of measuring.

    vocabulary: of the model that the run starts from; None: the text's own characters.
    dry_run: make no folder for the token cache where there is none.
    from_scratch: the run starts with fresh weights; else no loss is predicted.
    Raises: ConfigError for a text that no recipe can be trained on; StorageError (token cache).
    """
    of_its_size = _with_tokenizer(request) if vocabulary is None else request
    choosing = _choosing(of_its_size, vocabulary, dry_run)
    trial, speed = choosing.largest_trial()
    passes = choosing.passes_of_characters(trial)
    has_own_subwords = of_its_size is not request
    if has_own_subwords and trial.recipe.does_better_with_characters(passes, choosing.n_train):
        choosing = _choosing(request, vocabulary, dry_run)
        choosing.passes_too_many_for_subwords = passes
        trial, speed = choosing.largest_trial()
    choosing.from_scratch = from_scratch
    return choosing.fitted(trial, speed)


def _choosing(request: Request, vocabulary: Vocabulary | None, dry_run: bool) -> "_Choosing":
    """Return what is known of a text before this machine is measured. Raises: as `choose`."""
    possible = candidates(request)
    tokens = _tokens(request, possible[0].config, vocabulary, dry_run)
    unit = _unit(tokens)
    refuse_short(request, possible[0].config, len(tokens.ids), unit, tokens.n_train)
    check_parts(tokens, possible[0].config.data.test_split, request.text)
    trials = _trials(request, possible, tokens)
    device = pick_device(possible[0].config.device)
    logger.info(
        "choosing a recipe for %s (%s %s) %s: measuring this machine's speed",
        request.text,
        f"{len(tokens.ids):,}",
        unit,
        _and_time(request),
    )
    return _Choosing(request, trials, tokens, device)


def _with_tokenizer(request: Request) -> Request:
    """Return a request with what a token is, as the size of its text says.

    The user may say it, and a run that starts from another's weights has that one's tokens.
    """
    if request.tokens or request.shape or request.imports:
        return request
    data = candidates(request)[0].config.data
    training_bytes = request.text.stat().st_size * (1 - data.test_split)
    kind = tokenizer_for(training_bytes)
    if kind == data.tokenizer or "data.tokenizer" in request.keys:
        return request
    size = vocab_size_for(training_bytes)
    return replace(request, tokens=(f"data.tokenizer={kind}", f"data.vocab_size={size}"))


def _characters_per_token(tokens: Tokens, config: Config) -> float:
    """Return how many characters a token of a text's own has."""
    if config.data.tokenizer == "char":
        return 1.0
    some = tokens.ids[:PROMPT_TEXT]
    return float(tokens.vocabulary.lengths(some).mean())


def _tokens(
    request: Request, config: Config, vocabulary: Vocabulary | None, dry_run: bool
) -> Tokens:
    cache = Path(config.paths.cache)
    if not dry_run or cache.is_dir():
        tokens = encoded(config.data, request.text, cache, vocabulary)
    else:
        # what is mapped into memory stays readable after its folder is gone
        with tempfile.TemporaryDirectory(prefix="chatgot-", ignore_cleanup_errors=True) as folder:
            tokens = encoded(config.data, request.text, Path(folder), vocabulary)
    return tokens


def _trials(request: Request, possible: list[Candidate], tokens: Tokens) -> list[Trial]:
    """Return the recipes that this text is long enough for, the smallest first."""
    n_train = tokens.training_length(possible[0].config.data.test_split)
    trials = []
    for candidate in possible:
        context = context_for(request, candidate.config, len(tokens.ids), tokens.n_train)
        if context is None:
            continue
        config = recipe(request, candidate.name, [f"model.max_seq_length={context}"])
        with torch.device("meta"):  # only counted, never filled
            model = GPT(config.model, len(tokens.vocabulary))
        trials.append(
            Trial(
                recipe=Recipe(candidate.name, model.parameter_count()),
                candidate=candidate,
                context=context,
                flops_per_token=model.flops_per_token(),
                steps_of_a_pass=n_train / config.training.tokens_per_step(config.model),
            )
        )
    return trials


class _Choosing:
    """The measurements for one text, and what follows from them."""

    def __init__(
        self, request: Request, trials: list[Trial], tokens: Tokens, device: torch.device
    ) -> None:
        self.request = request
        self.trials = {trial.recipe.name: trial for trial in trials}
        self.tokens = tokens
        self.device = device
        self.n_train = tokens.training_length(trials[0].candidate.config.data.test_split)
        self.tokens_in_time: dict[str, float] = {}
        config = trials[0].candidate.config
        self.characters_per_token = _characters_per_token(tokens, config)
        self.from_scratch = True
        # over the characters, which fit into the time; None: subwords were not weighed
        self.passes_too_many_for_subwords: float | None = None

    def passes_of_characters(self, trial: Trial) -> float:
        """Return how often a recipe would see the text in the time, if a token were a character."""
        return self.tokens_in_time[trial.recipe.name] / self.training_characters

    @property
    def in_characters(self) -> bool:
        """Whether the tokens are the text's own characters."""
        return self.tokens.vocabulary.kind == "characters"

    @property
    def training_characters(self) -> int:
        """How long the training part is, in the unit of the rules."""
        return int(self.n_train * self.characters_per_token)

    @property
    def characters_in_time(self) -> dict[str, float]:
        """What each recipe would see in the time, in the unit of the rules."""
        each = self.characters_per_token
        return {name: each * tokens for name, tokens in self.tokens_in_time.items()}

    @property
    def seconds(self) -> float:
        """The seconds that are planned with."""
        return SHARE_OF_TIME * 60 * self.request.minutes

    def largest_trial(self) -> tuple[Trial, Speed]:
        """Return the largest recipe that fits text and time, and its measured speed.

        The smallest is measured first; from its FLOP/s follows which larger one is worth measuring.
        """
        recipes = [trial.recipe for trial in self.trials.values()]
        fitting = recipes_for_text(recipes, self.n_train)
        smallest = self.trials[fitting[0].name]
        speed = self._measure(smallest, ["training.compile=false"])
        assert speed is not None, "the smallest model fits into the memory, or its step says so"
        flops_per_s = smallest.flops_per_token * smallest.tokens_per_step / speed.step
        for trial in self.trials.values():
            gain = 1.0 if trial is smallest else HOPED_GAIN[self.device.type]
            tokens_per_s = gain * flops_per_s / trial.flops_per_token
            self.tokens_in_time[trial.recipe.name] = tokens_per_s * self.seconds
        measured: dict[str, Speed] = {}
        while True:
            trial = self.trials[largest_in_time(fitting, self.characters_in_time).name]
            name = trial.recipe.name
            if name in measured:
                return trial, measured[name]
            speed = self._measure(trial, self._guessed_settings(trial))
            if speed is None:  # it does not fit into the memory
                self.tokens_in_time[name] = 0.0
                fitting = [other for other in fitting if other.name != name]
                continue
            measured[name] = speed
            self.tokens_in_time[name] = trial.tokens_per_step / speed.step * self.seconds

    def _guessed_settings(self, trial: Trial) -> list[str]:
        """Return the settings that decide the modes of the run, as far as they are known now."""
        steps = max(1, int(self.tokens_in_time[trial.recipe.name] / trial.tokens_per_step))
        steps = min(steps, max(1, int(self._most_passes(trial) * trial.steps_of_a_pass)))
        dropout = self._dropout(trial, steps)
        later = self._multi_token_weights(trial, steps)
        return [
            f"training.max_steps={steps}",
            f"model.dropout={dropout}",
            f"training.multi_token_weights={later}",
        ]

    def _measure(self, trial: Trial, settings: list[str]) -> Speed | None:
        """Return the speed of a recipe on this text; None: it does not fit into the memory."""
        context = f"model.max_seq_length={trial.context}"
        config = recipe(self.request, trial.recipe.name, [context, *settings])
        is_smallest = trial is next(iter(self.trials.values()))
        try:
            return measure_speed(config, self.tokens, self.device, self.request.minutes)
        except (RuntimeError, MemoryError, OutOfMemory) as error:
            if is_smallest or not (isinstance(error, OutOfMemory) or is_out_of_memory(error)):
                raise
        return None

    def fitted(self, trial: Trial, speed: Speed) -> Choice:
        """Return the run: the recipe with as many steps as fit, and what follows from them."""
        planned = self._plan(trial, speed, self.request.minutes)
        prompts, whose = self._prompts()
        settings = self._settings(trial, planned, prompts)
        config = recipe(self.request, trial.recipe.name, settings)
        prediction, title = self._note_on_prediction(trial, speed, planned, config)
        reasons = self._reasons(trial, planned, whose)
        yaml = yaml_with_reasons(config, [*self._title(trial), title], reasons)
        again = config_of(yaml, f"{self.request.name}.yaml")
        assert again == config, "the YAML says all that the run's settings say"
        notes = [*self._notes(trial, planned, again, whose), prediction]
        return Choice(again, yaml, self.tokens, notes)

    def _plan(self, trial: Trial, speed: Speed, minutes: float) -> Plan:
        """Return how many steps fit into the minutes, and what else a run does in them."""
        return plan(
            self._costs(trial, speed),
            minutes,
            trial.steps_of_a_pass,
            self._most_passes(trial),
            self.request.until_best,
        )

    def _costs(self, trial: Trial, speed: Speed) -> Costs:
        """Return what the parts of the run take, from what was measured."""
        config = trial.candidate.config
        settings = config.training
        sequences = (len(self.tokens.ids) - self.n_train) / trial.context
        whole_s = speed.batch * max(1.0, sequences / settings.batch_size)
        evaluation_s = whole_s
        if settings.eval_batches != "all":
            evaluation_s = min(whole_s, settings.eval_batches * speed.batch)
        samples = 1 + len(config.sampling.prompts)
        sampling_s = samples * config.sampling.max_new_tokens * speed.token
        saved_bytes = SAVED_BYTES_PER_PARAMETER * trial.recipe.parameters
        save_s = LEAST_SAVE_S + saved_bytes / SAVED_BYTES_PER_S
        return Costs(
            step=speed.step + save_s / STEPS_BETWEEN_SAVES,
            evaluation=evaluation_s + save_s,
            samples=sampling_s,
            start=speed.build,
            end=whole_s,
        )

    def _prompts(self) -> tuple[list[str], str]:
        """Return prompts that suit the text, and what they are."""
        ids = self.tokens.ids[: min(self.n_train, PROMPT_TEXT)]
        return prompts_of(self.tokens.vocabulary.decode(ids.tolist()))

    def _settings(self, trial: Trial, planned: Plan, prompts: list[str]) -> list[str]:
        """Return what is set in the recipe, as `key=value`."""
        config = trial.candidate.config
        training = config.training
        steps = self._steps(trial, planned)
        stretched = steps / planned.steps  # other than 1 where the user sets the steps
        eval_interval = max(1, round(stretched * planned.eval_interval))
        sample_interval = max(1, round(stretched * planned.sample_interval))
        log_interval = min(training.log_interval or eval_interval, eval_interval)
        chosen: dict[str, object] = {
            "model.max_seq_length": trial.context,
            "model.dropout": self._dropout(trial, steps),
            "training.weight_decay": self._weight_decay(trial, steps),
            "training.input_noise": self._input_noise(trial, steps),
            "training.multi_token_weights": self._multi_token_weights(trial, steps),
            **self._end(planned),
            "training.warmup_steps": warmup_for(steps, training.warmup_steps),
            "training.log_interval": log_interval,
            "training.eval_interval": eval_interval,
            "training.sample_interval_steps": sample_interval,
            "training.save_checkpoint_steps": STEPS_BETWEEN_SAVES,
            "sampling.prompts": prompts,
        }
        if self.characters_per_token != 1:
            # samples of as much text as those of characters, with the same time for it
            shorter = round(config.sampling.max_new_tokens / self.characters_per_token)
            chosen["sampling.max_new_tokens"] = max(1, shorter)
        return [f"{key}={as_yaml(value)}" for key, value in chosen.items()]

    def _end(self, planned: Plan) -> dict[str, object]:
        """Return the keys that say when the run ends."""
        if not self.request.until_best:
            return {"training.max_steps": planned.steps}
        keys: dict[str, object] = {"training.stop_when_no_better": EVALUATIONS_WITHOUT_GAIN}
        if self.request.has_limit:
            # the minutes are all that the run may take: what is before and after the loop counts
            keys["training.max_minutes"] = max(
                MIN_MINUTES, float(f"{planned.loop_seconds / 60:.4g}")
            )
        return keys

    def _most_passes(self, trial: Trial) -> float:
        return trial.recipe.most_passes(self.n_train, self.in_characters)

    def _dropout(self, trial: Trial, steps: int) -> float:
        """Return the dropout of a run of so many steps."""
        return trial.recipe.dropout(steps / trial.steps_of_a_pass, self.n_train)

    def _input_noise(self, trial: Trial, steps: int) -> float:
        """Return the noise in what the model reads in a run of so many steps."""
        passes = steps / trial.steps_of_a_pass
        return trial.recipe.input_noise(passes, self.n_train, self.in_characters)

    def _multi_token_weights(self, trial: Trial, steps: int) -> list[float]:
        """Return how much the tokens after the next one count in a run of so many steps."""
        passes = steps / trial.steps_of_a_pass
        return trial.recipe.multi_token_weights(passes, self.n_train)

    def _weight_decay(self, trial: Trial, steps: int) -> float:
        """Return the weight decay of a run of so many steps."""
        return trial.recipe.weight_decay(steps / trial.steps_of_a_pass, self.n_train)

    def _steps(self, trial: Trial, planned: Plan) -> int:
        """Return the steps that the run will make: those planned, or those that the user sets."""
        settings = trial.candidate.config.training
        if not {"training.max_steps", "training.epochs"} & self.request.keys:
            return planned.steps
        windows = (self.n_train - 1) // trial.context - 1
        set_by_user = last_step(settings, windows)
        return planned.steps if set_by_user is None else set_by_user

    def _title(self, trial: Trial) -> list[str]:
        """Return the first lines of the YAML."""
        options = "--config and the same --init_from" if self.request.shape else "--config"
        return [
            f"The recipe {trial.recipe.name}, fitted to {self.request.text.name} "
            f"{_and_time(self.request)} on the machine that it was chosen on.",
            f"It makes the same run again with {options}.",
        ]

    def _reasons(self, trial: Trial, planned: Plan, whose: str) -> dict[str, str]:
        """Return the comment of each key that was chosen; what the user sets says so."""
        steps = f"as many as fit into {_minutes(self.request.minutes)}, as measured"
        if planned.ends_early:
            steps = f"{self._most_passes(trial):g} passes: more bring little on so short a text"
        shape = (override.partition("=")[0] for override in self.request.shape)
        reasons = dict.fromkeys(shape, "as in the model that the run starts from") | {
            "model.dropout": f"against learning the text by heart in {_passes(planned.passes)}",
            "training.weight_decay": f"for {_passes(planned.passes)}, as the dropout",
            "training.input_noise": f"for {_passes(planned.passes)}, as the dropout",
            "training.multi_token_weights": f"from {LEAST_FOR_MULTI_TOKEN} on",
            "training.max_steps": steps,
            "training.max_minutes": "in case the machine is slower than it was when measured",
            "training.eval_interval": "ten times in the run, fewer in a short one",
            "training.sample_interval_steps": "ten times in the run, fewer in a short one",
            "sampling.prompts": whose,
            "sampling.max_new_tokens": "as much text as with characters",
            "data.tokenizer": "the text is long enough for subwords",
            "data.vocab_size": "a longer text has more of them",
        }
        if self.request.until_best:
            reasons |= {
                "training.lr_schedule": "constant, until nothing gets better; then it decays",
                "training.stop_when_no_better": "evaluations in a row: then the decay, or the end",
                "training.max_minutes": "the most, without what is before and after the training",
                "training.eval_interval": "evaluations decide when the run ends",
            }
        if trial.shortened:
            reasons["model.max_seq_length"] = "the longest that so short a text has room for"
        return reasons | dict.fromkeys(self.request.keys, "as asked with --set")

    def _notes(self, trial: Trial, planned: Plan, config: Config, whose: str) -> list[Note]:
        """Return a line on each choice, in the order in which they were made."""
        keys = self.request.keys
        notes = [self._note_on_recipe(trial)]
        if config.data.tokenizer == "bpe":
            notes.insert(0, self._note_on_tokenizer(config))
        elif self.passes_too_many_for_subwords is not None:
            notes.insert(0, self._note_on_characters(self.passes_too_many_for_subwords))
        if self.request.minutes == DEFAULT_MINUTES and not self.request.until_best:
            words = f"minutes: {DEFAULT_MINUTES:g}, the default; --minutes M sets another number"
            notes.insert(0, Note(words, "minutes", DEFAULT_MINUTES))
        if trial.shortened:
            own = trial.candidate.config.model.max_seq_length
            notes.append(
                Note(
                    f"context: {trial.context} {_unit(self.tokens)} instead of the recipe's {own}, "
                    f"since the text has only {len(self.tokens.ids):,}",
                    "context",
                    trial.context,
                )
            )
        if self.request.until_best:
            notes += self._notes_until_best(trial, planned, config)
        else:
            notes.append(self._note_on_steps(trial, planned))
        if "model.dropout" not in keys:
            notes.append(self._note_on_dropout(trial, planned, config))
        if "training.multi_token_weights" not in keys:
            notes.append(self._note_on_multi_token(trial, planned, config))
        if "sampling.prompts" not in keys:
            prompts = config.sampling.prompts
            shown = ", ".join(json.dumps(prompt.strip(), ensure_ascii=False) for prompt in prompts)
            notes.append(Note(f"prompts: {shown} ({whose})", "prompts", prompts))
        return notes

    def _note_on_tokenizer(self, config: Config) -> Note:
        """Return why a token is a subword."""
        each = self.characters_per_token
        why = "as asked with --set"
        if "data.tokenizer" not in self.request.keys:
            megabytes = LEAST_BYTES_FOR_SUBWORDS / 1e6
            why = f"from {megabytes:g} MB on they predict a text better than characters do"
        words = f"tokens: subwords, {len(self.tokens.vocabulary):,} of them, {why}"
        words += f"; each one has {each:.2f} characters in the mean"
        measured: dict[str, object] = {"characters_per_token": round(each, 3)}
        return Note(words, "tokenizer", config.data.tokenizer, measured)

    def _note_on_characters(self, passes: float) -> Note:
        """Return why a token of a text that is long enough for subwords is a character."""
        words = (
            f"tokens: characters. About {_passes(passes)} over them fit into the time; from "
            f"{PASSES_FOR_CHARACTERS} on they predict a text better than its subwords, "
            "which are learnt by heart sooner"
        )
        return Note(words, "tokenizer", "char", {"passes": round(passes, 2)})

    def _note_on_recipe(self, trial: Trial) -> Note:
        """Return why this recipe is taken, and why not the next larger one."""
        name = trial.recipe.name
        seen = self.tokens_in_time[name]
        rate = seen / self.seconds
        time = "the time" if self.request.has_limit else human_time(60 * self.request.minutes)
        sentences = [
            f"recipe: {name}, {_millions(trial.recipe.parameters)} parameters",
            f"At {rate:,.0f} tokens/s it sees {_millions(seen)} tokens in {time}",
        ]
        if self.characters_in_time[name] < trial.recipe.tokens_needed:
            sentences.append("That is little, but no recipe is smaller: more minutes would help")
        larger = self._next_larger(name)
        if larger is not None:
            sentences.append(self._why_not(larger))
        measured: dict[str, object] = {
            "tokens_per_s": round(rate),
            "tokens_in_time": {name: round(n) for name, n in self.tokens_in_time.items()},
        }
        return Note(". ".join(sentences), "recipe", name, measured)

    def _next_larger(self, name: str) -> Trial | None:
        names = list(self.trials)
        place = names.index(name) + 1
        return self.trials[names[place]] if place < len(names) else None

    def _why_not(self, larger: Trial) -> str:
        """Return why the next larger recipe is not taken."""
        model = larger.recipe
        size = f"{model.name} ({_millions(model.parameters)} parameters)"
        if model.text_needed > self.n_train:
            return (
                f"{size} is too large for this text and would learn it by heart: "
                f"it needs {_millions(model.text_needed)} {_unit(self.tokens)}"
            )
        seen = self.tokens_in_time[model.name]
        if not seen:
            return f"{size} does not fit into the memory"
        return (
            f"{size} would see {_millions(seen)} tokens at most, "
            f"but needs {_millions(model.tokens_needed / self.characters_per_token)}"
        )

    def _note_on_steps(self, trial: Trial, planned: Plan) -> Note:
        """Return how long the run is, and why."""
        steps = self._steps(trial, planned)
        passes = steps / trial.steps_of_a_pass
        asked = _minutes(self.request.minutes)
        takes = f"about {human_time(planned.seconds)} with evaluations, samples and saves"
        why = f"This fits into {asked}: {takes}"
        if steps != planned.steps:
            why = "As asked with --set"
        elif planned.seconds > 60 * self.request.minutes:
            why = f"{asked} is hardly enough to begin: it takes {takes}"
        elif planned.ends_early:
            why = (
                f"That takes less than {asked}, {takes}: "
                "on so short a text more passes would bring little"
            )
        text = f"steps: {steps:,}, {_passes(passes)} over the training text. {why}"
        measured: dict[str, object] = {"seconds": round(planned.seconds), "passes": passes}
        return Note(text, "steps", steps, measured)

    def _notes_until_best(self, trial: Trial, planned: Plan, config: Config) -> list[Note]:
        """Return when a run until nothing gets better ends, and how its learning rate decays."""
        training = config.training
        rounds = training.stop_when_no_better
        limit = "without a limit of time; --minutes M sets one, Ctrl+C ends it, too"
        if self.request.has_limit:
            limit = f"at most {_minutes(self.request.minutes)}"
        stop = Note(
            f"end: after {rounds} evaluations in a row without a better held-out loss, {limit}",
            "stop_when_no_better",
            rounds,
            {"eval_interval": training.eval_interval},
        )
        when = "nothing gets better"
        if self.request.has_limit:
            when += ", or when the minutes near their end"
        schedule = Note(
            "learning rate: constant, since nobody knows yet when the run ends; "
            f"it decays when {when}",
            "lr_schedule",
            training.lr_schedule,
            {"decay_share": training.decay_share},
        )
        steps = Note(
            f"steps: about {planned.steps:,}, {_passes(planned.passes)} over the training text, "
            f"in about {human_time(planned.seconds)}, if the text is like others",
            "steps",
            None,
            {"seconds": round(planned.seconds), "passes": planned.passes},
        )
        return [stop, schedule, steps]

    def _note_on_prediction(
        self, trial: Trial, speed: Speed, planned: Plan, config: Config
    ) -> tuple[Note, str]:
        """Return which loss the run will reach, or why nobody knows, and the same for the YAML.

        Best effort.
        """
        why_not = self._why_no_prediction(config)
        if not why_not:
            try:
                forecast = self._forecast(trial, speed, planned, config)
            except Exception as error:  # noqa: BLE001 best effort: whatever fails, training goes on
                why_not = f"how hard the text is could not be measured ({error!r})"
            else:
                words = f"prediction: {forecast.words}. {forecast.reason}"
                loss = round(forecast.loss, 5)
                note = Note(words, "prediction", loss, forecast.numbers)
                return note, f"Predicted: {forecast.words}."
        words = f"prediction: none, since {why_not}"
        return Note(words, "prediction", None), f"No loss is predicted, since {why_not}."

    def _why_no_prediction(self, config: Config) -> str:
        """Return what the rule knows nothing of; empty: it may be used."""
        if not self.from_scratch:
            return "the run starts from a model that has learnt from other texts"
        if config.data.learn_from is not None:
            return "only the lines of some speakers are learned from"
        return ""

    def _forecast(self, trial: Trial, speed: Speed, planned: Plan, config: Config) -> Forecast:
        """Return the prediction. Raises: ValueError for a text without characters."""
        tokens = self.tokens
        with waiting("measuring how hard the text is"):
            hard = difficulty(tokens.ids, self.n_train, tokens.vocabulary).bits_per_byte
        held_out = tokens.ids[self.n_train : self.n_train + COUNTED_TEXT]
        steps = self._steps(trial, planned)
        return Forecast(
            predicted=self._predicted(trial, steps, hard),
            nats_per_bit=nats_per_bit(tokens_per_byte(held_out, tokens.vocabulary)),
            subwords=tokens.vocabulary.kind == "subwords",
            difficulty=hard,
            tokens=steps * config.training.tokens_per_step(config.model),
            twice=self._predicted_for_twice(trial, speed, planned, hard),
        )

    def _predicted(self, trial: Trial, steps: float, hard: float) -> Predicted:
        """Return what a recipe reaches after so many steps on this text."""
        return predict(
            Planned(
                difficulty=hard,
                parameters=trial.recipe.parameters,
                seen=steps * trial.tokens_per_step * self.characters_per_token,
                text=self.training_characters,
                subwords=self.tokens.vocabulary.kind == "subwords",
            )
        )

    def _predicted_for_twice(
        self, trial: Trial, speed: Speed, planned: Plan, hard: float
    ) -> Predicted | None:
        """Return what twice the minutes would reach, with this recipe or the one chosen then.

        None: the minutes do not end the run.
        """
        if not self.request.has_limit or self._steps(trial, planned) != planned.steps:
            return None
        longer = self._plan(trial, speed, 2 * self.request.minutes)
        reached = self._predicted(trial, longer.steps, hard)
        recipes = [other.recipe for other in self.trials.values()]
        fitting = recipes_for_text(recipes, self.n_train)
        twice = {name: 2 * seen for name, seen in self.characters_in_time.items()}
        larger = self.trials[largest_in_time(fitting, twice).name]
        if larger is trial:
            return reached
        in_time = 2 * self.tokens_in_time[larger.recipe.name] / larger.tokens_per_step
        steps = max(1.0, min(in_time, self._most_passes(larger) * larger.steps_of_a_pass))
        return min(reached, self._predicted(larger, steps, hard), key=lambda p: p.bits_per_byte)

    def _note_on_dropout(self, trial: Trial, planned: Plan, config: Config) -> Note:
        """Return why there is dropout, or none."""
        dropout = config.model.dropout
        passes = self._steps(trial, planned) / trial.steps_of_a_pass
        decay = config.training.weight_decay
        if dropout:
            by_heart = f"against learning the text by heart in {_passes(passes)}"
            noise = config.training.input_noise
            noisy = f", input noise {noise:g}" if noise else ""
            why = f"{dropout:g}{noisy} and weight decay {decay:g}, {by_heart}"
        elif passes <= 1:
            why = "none, since nothing is seen twice"
        elif not trial.recipe.learns_by_heart(self.n_train):
            why = "none, since this model is too small to learn the text by heart"
        else:
            why = f"none, since {_passes(passes)} are too few to learn the text by heart"
            if decay > LEAST_WEIGHT_DECAY and "training.weight_decay" not in self.request.keys:
                why += f"; weight decay {decay:g} is enough"
        return Note(f"dropout: {why}", "dropout", dropout, {"passes": round(passes, 2)})

    def _note_on_multi_token(self, trial: Trial, planned: Plan, config: Config) -> Note:
        """Return why the tokens after the next one count, or do not."""
        weights = config.training.multi_token_weights
        tokens = self._steps(trial, planned) * trial.tokens_per_step / trial.recipe.parameters
        pays = f"it pays from {LEAST_FOR_MULTI_TOKEN} on, and this run sees {tokens:.3g}"
        why = f"the model is to predict the next token only: {pays}"
        if weights:
            shown = " and ".join(f"{weight:g}" for weight in weights)
            why = f"the two tokens after the next one count {shown}, and fade out: {pays}"
        seen = round(tokens, 3)
        return Note(f"multi-token: {why}", "multi-token", weights, {"per_parameter": seen})


def _unit(tokens: Tokens) -> str:
    """Return what the tokens of a text are called."""
    return "characters" if tokens.vocabulary.kind == "characters" else "tokens"


def _and_time(request: Request) -> str:
    """Return how long a run is to take, in words that go on after its text."""
    if not request.until_best:
        return f"and {_minutes(request.minutes)}"
    limit = f", {_minutes(request.minutes)} at most," if request.has_limit else ""
    return f"to train until nothing gets better{limit}"


def _minutes(minutes: float) -> str:
    return "1 minute" if minutes == 1 else f"{minutes:g} minutes"


def _passes(count: float) -> str:
    shown = f"{count:.2g}" if count < 10 else f"{count:.0f}"
    return "1 pass" if shown == "1" else f"{shown} passes"


def _millions(count: float) -> str:
    if count < 99_500:
        return f"{count:,.0f}"
    return f"{count / 1e6:.1f} M" if count < 99.5e6 else f"{count / 1e6:,.0f} M"
