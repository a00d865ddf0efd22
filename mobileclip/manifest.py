"""The manifest: what a (reinforced) dataset promises about every file in it.

`manifest.json` lists base shards (webdataset tars) and columns (one safetensors file per shard). A stage that adds a
column publishes a new manifest in its own folder that names all earlier files by relative path: nothing is rewritten,
and a folder tree or bucket prefix moves as a whole.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from mobileclip import storage
from mobileclip.errors import DataError, IntegrityError

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"

WebAddress = Annotated[str, Field(pattern=r"^(https?://[^\s<>\"]+)?$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Growing(_Record):
    """Fields that came later are written where they say something, so that earlier manifests keep their digest."""

    LATER: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value or name not in self.LATER}


class Attribution(_Record):
    """One thing that went into a model, told as its license wants it."""

    kind: Literal["data", "captioner", "teacher", "weights"]
    """Pictures or captions; a model that wrote captions; one that was distilled; one that training started from."""
    name: str
    """Of the data set or model."""
    license: str = "unknown"
    """SPDX identifier or expression, or a name; `unknown` where none is recorded."""
    attribution: str = ""
    """Whom to name, in the words of the ledger."""
    url: WebAddress = ""
    """Where it is published."""


class Shard(_Growing):
    """One webdataset tar."""

    name: str
    """Function of the input's order, never of the order of work: `train-00000`."""
    split: Literal["train", "validation", "test"]
    path: str
    """Relative to the manifest's folder, or a whole URI."""
    samples: int
    bytes: int
    sha256: str
    uids_sha256: str
    """Digest of the uids in order, joined by newlines; every column file repeats it."""
    index_sha256: str = ""
    """Of the index beside the tar (`mobileclip.data.tar_index`); empty = there is none."""

    LATER = ("index_sha256",)

    @property
    def index_path(self) -> str:
        """Where its index lies, a path of the same kind as the tar's."""
        return index_path(self.path)


class ColumnPart(_Record):
    """One column file: the rows of one shard."""

    path: str
    bytes: int
    sha256: str
    samples: int


class Column(_Growing):
    """Something a stage added: captions, views, embeddings or a selection."""

    name: str
    """Unique: `coca`, `views`, `selection`, `TEACHER.views`, `TEACHER.captions`, `TEACHER.coca`."""
    kind: Literal["caption", "view", "embedding", "selection"]
    spec: dict[str, Any]
    """All that decides the bytes (model id and digest, sampling, augmentation, dtype, seed, library versions)."""
    spec_sha256: str
    computed_on: list[str] = []
    """Columns this one was computed from."""
    license: str = "unknown"
    attributions: list[Attribution] = []
    """The model that computed it, and what that was made from."""
    parts: dict[str, ColumnPart]
    """By shard name; a column may cover some splits only."""

    LATER = ("attributions",)


class Source(_Growing):
    """One origin of pictures or captions, for the license ledger."""

    name: str
    license: str
    attribution: str = ""
    url: WebAddress = ""
    samples: int

    LATER = ("url",)


class Manifest(_Record):
    """The contract between stages."""

    schema_version: int = SCHEMA_VERSION
    shards: list[Shard]
    columns: list[Column] = []
    sources: list[Source] = []
    scales: dict[str, float] = {}
    """Calibrated teacher logit scales; a teacher that is absent uses the one in its column's spec."""
    quarantined: int = 0

    def column(self, name: str) -> Column:
        """The column of that name.

        Raises:
            DataError: There is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise DataError(f"data: no column '{name}' in the manifest, it has {[c.name for c in self.columns]}.")

    def has(self, name: str) -> bool:
        """Whether there is a column of that name."""
        return any(column.name == name for column in self.columns)

    def split(self, *names: str) -> list[Shard]:
        """Shards of these splits, in order."""
        return [shard for shard in self.shards if shard.split in names]

    def held_out(self, wanted: str, among: Sequence[str] = ("test", "validation")) -> str:
        """The split that a stage judges on: the one asked for, or for `auto` the first of `among` that has samples."""
        there = {shard.split for shard in self.shards if shard.samples}
        return next((name for name in among if name in there), among[0]) if wanted == "auto" else wanted

    def teachers(self) -> list[str]:
        """Names of teachers with view embeddings, in the ensemble's order."""
        return [
            c.name.removesuffix(".views") for c in self.columns if c.kind == "embedding" and c.name.endswith(".views")
        ]

    def with_column(self, column: Column) -> "Manifest":
        """A manifest with this column added, or replaced where the name was there."""
        kept = [c for c in self.columns if c.name != column.name]
        return self.model_copy(update={"columns": [*kept, column]})

    def moved(self, old: str, new: str) -> "Manifest":
        """The same manifest for another folder: every path is rewritten as seen from `new`."""

        def seen(path: str) -> str:
            return storage.relative(storage.join(old, path), new)

        shards = [s.model_copy(update={"path": seen(s.path)}) for s in self.shards]
        columns = [
            c.model_copy(update={"parts": {k: p.model_copy(update={"path": seen(p.path)}) for k, p in c.parts.items()}})
            for c in self.columns
        ]
        return self.model_copy(update={"shards": shards, "columns": columns})

    def digest(self) -> str:
        """sha256 of the manifest's canonical bytes: of everything it lists."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same content gives the same bytes."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n").encode()


def read(folder: str) -> Manifest:
    """Read `manifest.json` of a folder or prefix.

    Raises:
        DataError: There is none, or it is of another schema.
    """
    uri = folder if folder.endswith(".json") else storage.join(folder, FILE_NAME)
    try:
        raw = json.loads(storage.read_bytes(uri))
    except DataError:
        raise DataError(f"data: no manifest at '{uri}', want the output folder of an earlier stage.") from None
    except ValueError:
        raise IntegrityError(f"{uri}: not JSON, the manifest is damaged.") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"data: schema_version of '{uri}' is {version}, want {SCHEMA_VERSION}.")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(f"{uri}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def write(folder: str, manifest: Manifest) -> None:
    """Publish `manifest.json`, whole or not at all."""
    storage.write_bytes(storage.join(folder, FILE_NAME), manifest.to_bytes())


def spec_digest(spec: dict[str, Any]) -> str:
    """sha256 of a column's spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def index_path(tar: str) -> str:
    """Where the index of a shard's tar lies."""
    return tar.removesuffix(".tar") + ".index"


def uids_digest(uids: list[str]) -> str:
    """sha256 of uids in order."""
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()
