"""Pack a student as an MLflow model: code file, safetensors weights, evidence, signature, example, requirements."""

import base64
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mobileclip.data import images
from mobileclip.data.preprocess import image_tensor
from mobileclip.errors import IntegrityError
from mobileclip.models import zoo
from mobileclip.tracking import runs as tracking

_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)
_MODULES = ("architectures", "text_repmixer")  # what open_clip and timm lack; these import nothing of this package
_CHECKPOINT = ("open_clip_config.json", "open_clip_model.safetensors", "model.json")
WEIGHTS = "student/open_clip_model.safetensors"
_TEXT = "a photo of a cat."
_TOLERANCE = 1e-5
_PACKAGE = Path(__file__).parent.parent


def log(client: Any, name: str, *, student: Path, evidence: Path, run_id: str, example: bytes) -> str:
    """Store a student as a pyfunc model that needs no part of this package.

    Args:
        client: From `tracking.connect`.
        name: Name of the logged model.
        student: Local checkpoint folder.
        evidence: Local folder with the reports and records that speak for it; kept beside the weights.
        run_id: Run that logs it; empty = none.
        example: One encoded picture, for the input example.

    Returns:
        The model's id; `models:/ID` loads it.

    Raises:
        DataError: The checkpoint does not fit the architecture as it is in this package.
        IntegrityError: The packed model gives other embeddings than the checkpoint.
    """
    mlflow = tracking.load_mlflow()
    experiment = client.get_run(run_id).info.experiment_id if run_id else tracking.experiment_id(client)
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id or None, model_type="clip-student")
    described = mlflow.models.Model(model_uuid=model.model_id, model_id=model.model_id, run_id=run_id or None)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        _save(mlflow, target, student=student, evidence=evidence, example=example, described=described)
        _prove(mlflow, target, student=student, example=example)
        client.log_model_artifacts(model.model_id, str(target))
    client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        client.log_outputs(run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


def download(name: str, number: int, part: str) -> Path:
    """A local copy of something that was stored with a registered version: `evidence`, `student`, or a file in them.

    Raises:
        ConfigError: The store does not give it.
    """
    with tracking.one_sentence(optional=False):
        found = tracking.load_mlflow().artifacts.download_artifacts(
            artifact_uri=f"models:/{name}/{number}/artifacts/{part}", tracking_uri=tracking.tracking_uri()
        )
    return Path(found)


def _save(mlflow: Any, target: Path, *, student: Path, evidence: Path, example: bytes, described: Any) -> None:
    import pandas  # type: ignore[import-untyped]  # MLflow brings it

    with tempfile.TemporaryDirectory() as folder:
        # Copies with plain names: MLflow writes the paths it is given into the model.
        root = Path(folder)
        shutil.copy(Path(__file__).with_name("student_pyfunc.py"), root / "student_pyfunc.py")
        modules = [root / f"mobileclip_{name}.py" for name in _MODULES]
        for name, module in zip(_MODULES, modules, strict=True):
            shutil.copy(_PACKAGE / "models" / f"{name}.py", module)
        _copy_checkpoint(student, root / "student")
        shutil.copytree(evidence, root / "evidence")
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(root / "student_pyfunc.py"),
            code_paths=[str(module) for module in modules],
            artifacts={name: str(root / name) for name in ("student", "evidence")},
            signature=_signature(mlflow),
            input_example=pandas.DataFrame([{"image": base64.b64encode(example).decode(), "text": _TEXT}]),
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            mlflow_model=described,
        )


def _prove(mlflow: Any, target: Path, *, student: Path, example: bytes) -> None:
    """Load the packed model as a user would, and compare it with the checkpoint."""
    clip = zoo.load(f"local-dir:{student}")
    pixels = images.resize(images.decode(example), clip.preprocess)[None]
    wanted = torch.cat([clip.encode_image(image_tensor(pixels, clip.preprocess)), clip.encode_text([_TEXT])])
    path = list(sys.path)
    try:
        found = mlflow.pyfunc.load_model(str(target)).predict({"image": [example], "text": [_TEXT]})
    finally:
        sys.path[:] = path  # MLflow leaves the model's code folder there
    got = torch.tensor([found["image_embedding"][0], found["text_embedding"][0]])
    error = float((got - wanted).abs().max())
    if not error <= _TOLERANCE:
        raise IntegrityError(
            f"promote: the packed student's embeddings differ by {error:g}, want {_TOLERANCE:g} at most."
        )


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Weights, configuration and tokenizer; a training checkpoint that lies beside them stays where it is."""
    target.mkdir()
    for name in _CHECKPOINT:
        shutil.copy(source / name, target / name)
    if (source / "text").is_dir():
        shutil.copytree(source / "text", target / "text")


def _signature(mlflow: Any) -> Any:
    types = mlflow.types
    vector = types.schema.Array("double")
    outputs = ("image_embedding", "text_embedding", "probabilities")
    return mlflow.models.ModelSignature(
        inputs=types.Schema(
            [
                # Any: bytes, base64 text or an array; a `binary` column would refuse the other two.
                types.ColSpec(types.schema.AnyType(), "image", required=False),
                types.ColSpec("string", "text", required=False),
            ]
        ),
        outputs=types.Schema([types.ColSpec(vector, name, required=False) for name in outputs]),
        params=types.ParamSchema(
            [
                types.ParamSpec("labels", "string", [], shape=(-1,)),
                types.ParamSpec("template", "string", "a photo of a {}."),
                types.ParamSpec("normalize", "boolean", True),
            ]
        ),
    )
