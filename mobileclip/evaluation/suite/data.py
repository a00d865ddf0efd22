"""The data of evaluation tasks in the layouts the field uses, read sample by sample.

- `webdataset`: `FOLDER/test/0.tar ...` with `nshards.txt`, beside it `classnames.txt` and
  `zeroshot_classification_templates.txt` (CLIP benchmark). A sample has a picture and `cls` (its class's number), `txt`
  (captions, one a line) or `json`, and maybe `npy` (its groups).
- `imagefolder`: `FOLDER/CLASS/*.jpg`, local or in S3.
- `prepared`: a dataset of this project.
- `choice`: a JSON file of pictures with a right and a wrong caption (SugarCrepe).
"""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mobileclip import manifest, storage
from mobileclip.data.shards import IMAGE_EXTENSIONS, read_samples
from mobileclip.errors import DataError
from mobileclip.evaluation.suite.tasks import CLASSES_FILE, TEMPLATES_FILE, Task
from mobileclip.storage.walk import is_hidden

_COUNT_FILE = "nshards.txt"


@dataclass(frozen=True)
class Item:
    """One sample.

    Attributes:
        images: Encoded pictures; one but for association tasks.
        label: Number of its class; -1 without classes.
        texts: Its captions; for a `choice` the right one first, for an association its cue.
        groups: Its groups' numbers, by column.
        right: For associations, whether each picture belongs to the cue.
    """

    images: list[bytes]
    label: int = -1
    texts: list[str] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """An opened task.

    Attributes:
        task: The registry's row.
        folder: Where its data lies.
        classes: Class names by number; empty without classes.
        templates: Prompts with `{}` for the class.
    """

    task: Task
    folder: str
    classes: list[str]
    templates: list[str]

    def items(self) -> Iterator[Item]:
        """Its samples, in a fixed order.

        Raises:
            DataError: A file is missing, cut or malformed.
        """
        places = {name: number for number, name in enumerate(self.classes)}
        if self.task.layout == "webdataset":
            return _from_tars(self)
        if self.task.layout == "imagefolder":
            return _from_folders(self.folder, places)
        if self.task.layout == "prepared":
            return _from_prepared(self, places)
        return _from_choices(self)


def is_there(task: Task, root: str) -> bool:
    """Whether the task's data is below `root`."""
    folder = storage.join(root, task.folder)
    if task.layout == "prepared":
        return storage.exists(storage.join(folder, manifest.FILE_NAME))
    if task.layout == "choice":
        return storage.exists(storage.join(folder, task.file))
    if task.layout == "imagefolder":
        return bool(storage.list_names(folder))
    return bool(_tars(folder))


def open_task(task: Task, root: str) -> Source:
    """Find the task's classes and prompts.

    Raises:
        DataError: They are missing, or their number is not the registry's.
    """
    folder = storage.join(root, task.folder)
    if task.kind not in {"classification", "faces"}:
        return Source(task, folder, [], [])
    classes = _classes(task, folder)
    if task.classes and len(classes) != task.classes:
        raise DataError(f"suite: {task.key} has {len(classes)} classes in '{folder}', want {task.classes}.")
    templates = task.templates or _lines(folder, TEMPLATES_FILE, task.key)
    wrong = [template for template in templates if "{c}" not in template and "{}" not in template]
    if wrong:
        raise DataError(f"suite: {task.key} has the prompt '{wrong[0]}', want {{c}} or {{}} for the class.")
    return Source(task, folder, classes, [template.replace("{c}", "{}") for template in templates])


def _classes(task: Task, folder: str) -> list[str]:
    if task.layout == "imagefolder" and not storage.exists(storage.join(folder, CLASSES_FILE)):
        return sorted({name.split("/")[0] for name in _visible(folder) if "/" in name})
    if task.layout == "prepared":
        content = manifest.read(folder)
        values = {sample.metadata.get(task.field) for sample in read_samples(folder, content, task.split)}
        return sorted(str(value) for value in values if value is not None)
    return _lines(folder, CLASSES_FILE, task.key)


def _visible(folder: str) -> list[str]:
    return [name for name in storage.list_files(folder) if not is_hidden(name)]


def _lines(folder: str, name: str, key: str) -> list[str]:
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        raise DataError(f"suite: {key} has no '{name}' in '{folder}'.")
    return [line.strip() for line in storage.read_bytes(uri).decode().splitlines() if line.strip()]


def _tars(folder: str) -> list[str]:
    """The tars of a task: in `test/`, else in the folder itself."""
    for place in (storage.join(folder, "test"), folder):
        names = [name for name in storage.list_names(place) if name.endswith(".tar")]
        if names:
            names.sort(key=lambda name: (len(name), name))  # 2.tar before 10.tar
            return [storage.join(place, name) for name in names]
    return []


def _from_tars(source: Source) -> Iterator[Item]:
    tars = _tars(source.folder)
    counted = storage.join(tars[0], "..", _COUNT_FILE)
    if storage.exists(counted) and int(storage.read_bytes(counted)) != len(tars):
        want = int(storage.read_bytes(counted))
        raise DataError(f"suite: {source.task.key} has {len(tars)} shards in '{source.folder}', want {want}.")
    for tar in tars:
        try:
            for key, members in _members(storage.read_bytes(tar)):
                yield _item(source, f"{tar}:{key}", members)
        except tarfile.TarError as error:
            raise DataError(f"suite: '{tar}' is no readable tar: {error}.") from None


def _members(data: bytes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of a tar by everything before the first dot of the name, as webdataset groups them."""
    last, found = "", dict[str, bytes]()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
        for info in tar:
            folder, _, base = info.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}"
            if key != last and found:
                yield last, found
                found = {}
            handle = tar.extractfile(info) if info.isfile() else None
            if handle:
                last, found[extension.lower()] = key, handle.read()
    if found:
        yield last, found


def _item(source: Source, where: str, members: dict[str, bytes]) -> Item:
    task = source.task
    try:
        if task.kind == "association":
            return _association(members)
        image = next(members[extension] for extension in IMAGE_EXTENSIONS if extension in members)
        groups = _groups(members) if task.groups or task.kind == "faces" else []
        if task.kind == "faces":
            return Item([image], groups=groups)
        if task.kind == "retrieval":
            texts = [line.strip() for line in members["txt"].decode().split("\n") if line.strip()]
            return Item([image], texts=texts)
        label = int(members["cls"])
    except (KeyError, StopIteration, ValueError) as error:
        raise DataError(f"suite: sample '{where}' is not as {task.kind} wants it ({error}).") from None
    if not 0 <= label < len(source.classes):
        raise DataError(f"suite: sample '{where}' has class {label}, want 0 to {len(source.classes) - 1}.")
    return Item([image], label, groups=groups)


def _groups(members: dict[str, bytes]) -> list[int]:
    array = np.load(io.BytesIO(members["npy"]), allow_pickle=False)
    return [int(value) for value in array.reshape(-1)]


def _association(members: dict[str, bytes]) -> Item:
    facts: dict[str, Any] = json.loads(members["json"])
    pictures = [
        next(members[f"{number}.{extension}"] for extension in IMAGE_EXTENSIONS if f"{number}.{extension}" in members)
        for number in range(len(facts["candidates"]))
    ]
    wanted = set(facts["associations"])
    right = [candidate in wanted for candidate in facts["candidates"]]
    return Item(pictures, texts=[str(facts["cue"])], right=right)


def _from_folders(folder: str, places: dict[str, int]) -> Iterator[Item]:
    for path in _visible(folder):
        if path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            name = path.split("/")[0]
            if name not in places:
                raise DataError(
                    f"suite: '{storage.join(folder, path)}' lies in no class's folder, want one of {len(places)}."
                )
            yield Item([storage.read_bytes(storage.join(folder, path))], places[name])


def _from_prepared(source: Source, places: dict[str, int]) -> Iterator[Item]:
    content = manifest.read(source.folder)
    for sample in read_samples(source.folder, content, source.task.split):
        if source.task.kind == "retrieval":
            yield Item([sample.image], texts=sample.captions)
        elif (value := sample.metadata.get(source.task.field)) is not None:
            yield Item([sample.image], places[str(value)])


def _from_choices(source: Source) -> Iterator[Item]:
    rows = json.loads(storage.read_bytes(storage.join(source.folder, source.task.file)))
    for row in rows.values() if isinstance(rows, dict) else rows:
        image = storage.read_bytes(storage.join(source.folder, "images", str(row["filename"])))
        yield Item([image], texts=[str(row["caption"]), str(row["negative_caption"])])
