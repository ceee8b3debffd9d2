"""What happens in an export? A model is written aside, read back, proven, and then in its place."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from chatgot.errors import ExportImpossible, StorageError
from chatgot.exchange.formats import ChoosesDtype, Dtype, Format
from chatgot.exchange.held_out import Windows
from chatgot.exchange.model_card import model_card
from chatgot.exchange.new_folder import check_folder, new_folder
from chatgot.exchange.proof import Proof, prove
from chatgot.logs.waiting import waiting
from chatgot.model.gpt import GPT
from chatgot.sampling.copies_of_model import Copies
from chatgot.sampling.loading import LoadedModel

CARD = "README.md"


@dataclass(frozen=True)
class Exported:
    """What was written: its files with their bytes, the remarks of the format, and the proof."""

    folder: Path
    files: dict[str, int]
    remarks: list[str]
    proof: Proof


def check_dtype(exported_as: Format, dtype: Dtype | None) -> None:
    """Refuse a dtype that a format does not have; None: any. Raises: ExportImpossible."""
    if dtype is not None and dtype not in exported_as.dtypes:
        raise ExportImpossible(
            f"--dtype {dtype}: {exported_as.name} has {', '.join(exported_as.dtypes)}; "
            "choose one of those"
        )


def default_dtype(exported_as: Format, model: GPT) -> Dtype:
    """Return the dtype that a format gives a model where the user names none."""
    if isinstance(exported_as, ChoosesDtype):
        return exported_as.default_dtype(model)
    return exported_as.dtypes[0]


def export(
    loaded: LoadedModel,
    exported_as: Format,
    dtype: Dtype,
    folder: Path,
    held_out: Windows,
    copies: Copies | None = None,
) -> Exported:
    """Write a model into a new folder, proven; parent folders are made if need be.

    copies: what the model copies from its training text, for the model card; None: not measured.
    Raises: ConfigError for a folder that is there; ExportImpossible; ProofFailed; StorageError.
    Nothing stays behind then.
    """
    try:
        check_folder(folder)
        with new_folder(folder) as temporary:
            with waiting("writing the export"):
                remarks = exported_as.write(loaded, dtype, temporary)
            if copies is not None and copies.samples:
                remarks = [*remarks, copies.sentence()]
            with waiting("proving the export"):
                proof = prove(loaded, exported_as, dtype, temporary, held_out)
            card = model_card(loaded, exported_as, dtype, temporary, proof, remarks)
            (temporary / CARD).write_text(card, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(_cannot_write(folder, error.strerror or str(error))) from error
    except SafetensorError as error:  # its words hold the system's
        raise StorageError(_cannot_write(folder, str(error))) from error
    return Exported(folder, _sizes(folder), remarks, proof)


def _cannot_write(folder: Path, reason: str) -> str:
    return f"{folder}: the export cannot be written: {reason}; nothing is left of it"


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file below a folder, by its name there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
