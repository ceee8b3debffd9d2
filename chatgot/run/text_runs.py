"""Which run began from a text without a YAML: resuming by the text means that run's own YAML."""

import os
from collections.abc import Iterator
from pathlib import Path

from chatgot.checkpointing.checkpoints import read_outline
from chatgot.checkpointing.names import NAME, RUN_ID
from chatgot.checkpointing.run_files import files_of_run
from chatgot.command_line import as_typed, command_words
from chatgot.config_file import load_config
from chatgot.data.own_text import Request, paths_of
from chatgot.errors import CheckpointRejected, ConfigError
from chatgot.logs.origins import is_gone, origin, text_of_yaml, yaml_that_began
from chatgot.run.resuming import last_run_of, refuse_misspelt_latest


def began_from_text(run_id: str, config_path: str) -> bool:
    """Return whether a run began from a text: the YAML that was chosen lies in its own folder."""
    return Path(config_path).parent.name == run_id


def yaml_to_resume(request: Request, resume_from: str) -> Path:
    """Return the YAML of the run that `latest`, or a checkpoint, means for a text.

    `latest` is the newest run that began from this very text and has a checkpoint; if there is
    none, the newest of that name whose text is gone (moved, or its folder renamed).
    Raises: ConfigError; CheckpointRejected where there is none, or it began from something else.
    """
    runs_dir = Path(paths_of(request).logs) / "tensorboard"
    if resume_from != "latest":
        refuse_misspelt_latest(Path(resume_from))
        return _yaml_of_checkpoint(request, Path(resume_from), runs_dir)
    text = str(request.text.resolve())
    yaml, others = last_run_of(text, _runs_of_texts(request, runs_dir))
    if yaml is not None:
        return yaml
    hint = ""
    if others:
        hint = f"; the runs of that name began from {', '.join(others)}"
    raise CheckpointRejected(
        f"{runs_dir}: no run of {text} with a checkpoint is here, so nothing can go on{hint}"
    )


def _runs_of_texts(request: Request, runs_dir: Path) -> Iterator[tuple[Path, str]]:
    """Yield the YAML and the text of each run of a name that can be resumed, the newest first."""
    for run_dir in _runs_of_name(request.name, runs_dir):
        yaml = Path(yaml_that_began(run_dir))
        if not text_of_yaml(yaml) or not _has_checkpoint(run_dir.name, yaml, request):
            continue
        if yaml.parent == run_dir.resolve():
            yaml = run_dir / yaml.name  # shorter, for the commands in the log
        yield yaml, origin(run_dir)


def _runs_of_name(name: str, runs_dir: Path) -> Iterator[Path]:
    """Yield the folders of a name's runs, the newest first."""
    folders = {}
    if runs_dir.is_dir():
        for entry in os.scandir(runs_dir):
            match = RUN_ID.fullmatch(entry.name)
            if match and match["config"] == name and entry.is_dir():
                folders[match["timestamp"]] = Path(entry.path)
    for timestamp in sorted(folders, reverse=True):
        yield folders[timestamp]


def _has_checkpoint(run_id: str, yaml: Path, request: Request) -> bool:
    """Return whether a run has a checkpoint where its YAML, and `--set`, say."""
    try:
        config, _ = load_config(yaml, request.folders)
        return bool(files_of_run(Path(config.paths.checkpoints), run_id))
    except (ConfigError, OSError):
        return False


def _yaml_of_checkpoint(request: Request, path: Path, runs_dir: Path) -> Path:
    """Return the YAML of a checkpoint's run. Raises: CheckpointRejected."""
    yaml = Path(_yaml_in_folder(path, runs_dir) or _yaml_in_file(path))
    text = text_of_yaml(yaml)
    if text == str(request.text.resolve()) or (text and is_gone(Path(text))):
        return yaml
    began_from = text or str(yaml)
    source = [text] if text else ["--config", str(yaml)]
    command = as_typed([*command_words(), *source, "--resume_from", str(path)])
    raise CheckpointRejected(
        f"{path}: its run began from {began_from}, not from {request.text.resolve()}; "
        f"go on with: {command}"
    )


def _yaml_in_folder(path: Path, runs_dir: Path) -> str:
    """Return the YAML that the folder of a checkpoint's run names; empty: there is none."""
    if not NAME.fullmatch(path.name):
        return ""
    yaml = yaml_that_began(runs_dir / path.name.rpartition("_step_")[0])
    return "" if is_gone(Path(yaml)) else yaml


def _yaml_in_file(path: Path) -> str:
    """Return the YAML that a checkpoint itself names. Raises: CheckpointRejected."""
    return str(read_outline(path).get("config_path", ""))
