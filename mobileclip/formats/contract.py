"""The contract: one file that tells an app all it must know to run a student's programs, and what was proved.

Reading it needs neither torch nor a runtime.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError, model_validator

from mobileclip import manifest
from mobileclip.errors import DataError, IntegrityError
from mobileclip.formats.digests import digest
from mobileclip.formats.program_ports import Record, TensorSpec
from mobileclip.manifest import WebAddress

SCHEMA_VERSION = 2
FILE_NAME = "contract.json"
Tower = Literal["image", "text"]


def inside(path: str) -> str:
    """Refuse paths that leave the folder they are relative to: a contract or an archive may come from anywhere.

    Raises:
        ValueError: It is absolute, climbs, names a drive, or holds empty parts or control characters.
    """
    parts = path.split("/")
    if not all(parts) or {".", ".."} & set(parts) or any(c in "\\:" or ord(c) < 32 for c in path):
        raise ValueError(f"'{path}' leads out of the folder")
    return path


RelativePath = Annotated[str, AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


class ImageContract(Record):
    """How a picture becomes pixels; in what form a program takes them its own `input` says."""

    color_order: Literal["RGB"] = "RGB"
    size: PositiveInt
    """Width and height [pixels]."""
    orientation: Literal["exif"] = "exif"
    """The picture is turned upright as its EXIF tag says, before all else."""
    transparency: Literal["white"] = "white"
    """Transparent pixels are laid on that color."""
    resize: Literal["squash", "shortest", "longest"] = "squash"
    """`squash` scales width and height each on its own; `shortest` and `longest` keep the aspect ratio and scale that
    side to `size`, the other one to a whole number of pixels: cut off for `shortest`, half to even for `longest`."""
    crop: Literal["none", "center"] = "none"
    """`center` with `shortest` alone: of the longer side `size` pixels are kept, from round((length - size) / 2) on,
    half to even."""
    fill: Annotated[int, Field(ge=0, le=255)] = 0
    """Gray level around an image of `longest`, which lies at (size - length) // 2."""
    interpolation: Literal["bilinear", "bicubic", "nearest"]
    """Pillow's filter of that name: triangle, Keys' cubic with a = -0.5, or none."""
    antialias: bool = True
    """The filter is widened by the factor of reduction, as Pillow does; canvas and Core Image differ."""
    mean: Channels
    """Subtracted per channel, **inside** the program."""
    std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]
    """Divided by per channel, **inside** the program."""
    normalization_in_program: bool = True
    """A client that also normalizes gets wrong embeddings."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        wanted = "center" if self.resize == "shortest" else "none"
        if self.crop != wanted:
            raise ValueError(f"resize '{self.resize}' goes with crop '{wanted}', got '{self.crop}'")
        return self


class TextContract(Record):
    """How a text becomes the input of the text programs."""

    tokenizer: Literal["clip-bpe", "hugging-face"]
    """`clip-bpe`: the files in `tokenizer/`; `hugging-face`: the model's own tokenizer files."""
    context_length: PositiveInt
    """Every row has exactly this length."""
    truncation: Literal["keep-end"] = "keep-end"
    """A text that is too long is cut on the right and its last token replaced by `end_id`."""
    start_id: int
    """First token; -1 = none."""
    end_id: int
    """Last token before the padding, also of a text that was cut; -1 = none."""
    pad_id: int
    """Fills the row; a bidirectional text tower gives other embeddings with any other padding."""
    causal: bool
    """Whether tokens see earlier tokens only."""
    cleaning: list[str]
    """What a host does to the text before the tokenizer file, in order."""


class File(Record):
    """One file beside the contract."""

    path: RelativePath
    """Relative to the contract, with forward slashes."""
    bytes: NonNegativeInt
    """Size; of a folder, of all its files."""
    sha256: Sha256
    """Digest of the bytes; of a folder, see `mobileclip.formats.digests`."""


class Program(File):
    """One program with its proof."""

    tower: Tower
    format: str
    precision: str
    input: TensorSpec
    """Pixels or token ids, as this program takes them."""
    output: TensorSpec
    """Embeddings; compare by dot product."""
    kept_in_float: list[str] = Field(default_factory=list)
    """Layers that a quantized program holds in floating point, because its budget asked for it."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the exporter (for ONNX: opset)."""
    budget: PositiveFloat
    """Largest `error` allowed."""
    executed: bool
    """Whether the figures come from the real runtime; otherwise from an emulation."""
    figures: dict[str, float]
    """Proof on the evaluation samples; `mobileclip.formats.proof` defines each."""


class Bank(Record):
    """Class embeddings computed beforehand, with which an app needs no text program."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Its name."""
    path: RelativePath
    """The embeddings, safetensors [labels, embed_dim]; labels and templates lie beside it in a `.json` of that name."""
    labels: PositiveInt
    """Number of classes."""
    precision: Literal["float32", "float16", "int8"]
    """As stored; int8 rows have one scale each."""
    budget: PositiveFloat
    """Largest `error` allowed."""
    figures: dict[str, float]
    """Proof against the student's own text tower; `mobileclip.formats.bundle.prompt_bank` defines each."""


class Attribution(manifest.Attribution):
    """One thing that went into the student, with all that an app's page of credits shows."""

    license_urls: dict[str, WebAddress] = Field(default_factory=dict)
    """Where each license of `license` can be read; empty = not known."""


class Lineage(Record):
    """Where the student comes from."""

    student_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    """Digest of the weights file; empty for weights that were never saved."""
    dataset_sha256: str
    """Digest of the manifest whose samples proved the programs."""
    card: dict[str, Any]
    """The checkpoint's own card."""


class Contract(Record):
    """Everything about one export."""

    schema_version: int = SCHEMA_VERSION
    model: str
    """Architecture."""
    license: str
    """License of the weights."""
    attributions: list[Attribution] = Field(default_factory=list)
    """Data, captioners, teachers and pretrained weights behind the student; empty in contracts of before."""
    embed_dim: PositiveInt
    """Width of the embeddings."""
    logit_scale: float
    """Scores are `logit_scale * image @ text + logit_bias`, softmax over the texts for probabilities."""
    logit_bias: float = 0.0
    image: ImageContract
    text: TextContract
    programs: list[Program]
    prompt_banks: list[Bank] = Field(default_factory=list)
    """Class embeddings computed beforehand."""
    files: list[File]
    """Tokenizer, golden values and all else beside the programs."""
    lineage: Lineage
    versions: dict[str, str]
    """Versions of the libraries that decide the programs' bytes."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        rows = {"image": [3, self.image.size, self.image.size], "text": [self.text.context_length]}
        for program in self.programs:
            wanted = {"input": rows[program.tower], "output": [self.embed_dim]}
            for name, spec in (("input", program.input), ("output", program.output)):
                if spec.shape[1:] != wanted[name] or spec.shape[0] != program.input.shape[0]:
                    shape = [program.input.shape[0], *wanted[name]]
                    raise ValueError(f"{name} of {program.path} has the shape {spec.shape}, want {shape}")
        paths = [file.path for file in (*self.programs, *self.files)]
        doubles = sorted({path for path in paths if paths.count(path) > 1})
        if doubles or FILE_NAME in paths:
            raise ValueError(f"{', '.join(doubles) or FILE_NAME} is listed more than once")
        missing = [bank.path for bank in self.prompt_banks if bank.path not in paths]
        if missing:
            raise ValueError(f"prompt bank {missing[0]} is not among the files")
        return self

    def program(self, tower: Tower, *, precision: str, format: str = "onnx") -> Program:
        """The program of that tower, precision and format.

        Raises:
            DataError: There is none.
        """
        for program in self.programs:
            if (program.tower, program.precision, program.format) == (tower, precision, format):
                return program
        known = [p.path for p in self.programs if p.tower == tower]
        raise DataError(f"programs: no {format} {tower} program in {precision}, the export has {', '.join(known)}.")

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same content gives the same bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def read(folder: Path) -> Contract:
    """Read `contract.json` of an export folder.

    Raises:
        DataError: There is none, or it is of another schema.
        IntegrityError: It is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise DataError(f"programs: no {FILE_NAME} in '{folder}', want the output folder of export.")
    return parse(path.read_bytes(), name=str(path))


def parse(data: bytes, *, name: str = FILE_NAME) -> Contract:
    """Check and build a contract from its bytes.

    Args:
        data: JSON.
        name: What to call it in errors.

    Raises:
        DataError: It is of another schema.
        IntegrityError: It is damaged, or disagrees with itself.
    """
    try:
        raw = json.loads(data)
    except ValueError:
        raise IntegrityError(f"{name}: not JSON, the contract is damaged.") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"programs: schema_version of '{name}' is {version}, want {SCHEMA_VERSION}: export it again.")
    try:
        return Contract.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "contract"
        raise IntegrityError(f"{name}: {place}: {first['msg'].removeprefix('Value error, ')}.") from None


def listed(data: bytes) -> list[str]:
    """Paths of all programs and files that a contract of any version lists; none where it is no contract."""
    try:
        raw = json.loads(data)
        return [inside(file["path"]) for file in (*raw["programs"], *raw["files"])]
    except (ValueError, TypeError, KeyError, AttributeError):
        return []


def schema() -> bytes:
    """JSON Schema of the contract, for readers in other languages."""
    return (json.dumps(Contract.model_json_schema(), indent=1, sort_keys=True) + "\n").encode()


def describe(path: Path, *, root: Path) -> File:
    """Name, size and digest of a file below `root`."""
    return File(path=path.relative_to(root).as_posix(), **digest(path))


def check(folder: Path, file: File) -> Path:
    """The path of a file of the contract, after its bytes were checked.

    Raises:
        IntegrityError: It is missing, or not the file the contract was written for.
    """
    path = folder / file.path
    if not path.exists():
        raise IntegrityError(f"{file.path}: missing beside its contract.")
    if (got := digest(path)["sha256"]) != file.sha256:
        raise IntegrityError(
            f"{file.path}: sha256 is {got}, the contract promises {file.sha256}; the file is damaged or was replaced."
        )
    return path
