"""What the report shows beside numbers agrees with the numbers and with the dataset."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mobileclip import manifest
from mobileclip.data.augment import apply_view
from mobileclip.data.columns import ColumnReader
from mobileclip.data.images import decode, to_image
from mobileclip.data.shards import ShardReader
from mobileclip.evaluation.assess import assess
from mobileclip.evaluation.features import embed_split
from mobileclip.models import zoo
from mobileclip.reports import examples as exhibits
from tests.evaluation import small_run


@pytest.fixture(scope="module")
def found():
    data, folder = small_run.inputs()
    content = manifest.read(str(data))
    models = {name: zoo.load(f"trained:{name}", trained=str(folder)) for name in ("student", "control")}
    embedded = embed_split(models, str(data), content, split="test", batch_size=32)
    return str(data), content, assess(models, embedded, small_run.CONFIG)


def pixels(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def test_retrieval_examples__marks_agree_with_ranks(found):
    data, content, measured = found
    texts, pictures = exhibits.retrieval_examples(measured, data=data, content=content, split="test", count=40, seed=0)
    assert (len(texts), len(pictures)) == (20, 20)
    seen = 0
    for query in (*texts, *pictures):
        for name, hits in query.answers.items():
            first = [place for place, hit in enumerate(hits, start=1) if hit.right]
            assert len(hits) == exhibits.TOP
            assert (first[0] if first else None) == (query.ranks[name] if query.ranks[name] <= exhibits.TOP else None)
            seen += bool(first)
    assert seen > 10


def test_retrieval_examples__follow_the_seed(found):
    data, content, measured = found
    options = {"data": data, "content": content, "split": "test", "count": 6}
    first = exhibits.retrieval_examples(measured, **options, seed=0)
    assert first == exhibits.retrieval_examples(measured, **options, seed=0)
    assert first != exhibits.retrieval_examples(measured, **options, seed=1)
    assert exhibits.retrieval_examples(measured, **{**options, "count": 0}, seed=0) == ([], [])


def test_contact_sheet__shows_the_stored_views(found):
    data, content, _ = found
    sheets = exhibits.contact_sheet(data, content, size=64, interpolation="bilinear", seed=0)
    expected = {}
    for shard in content.split("train"):
        reader, views = ShardReader(data, shard), ColumnReader(data, content.column("views"), shard)
        for index in range(len(reader)):
            image = decode(reader.sample(index).image)
            replayed = [
                exhibits.thumbnail(to_image(apply_view(image, view, size=64, interpolation="bilinear")))
                for view in views.row("views", index).numpy()
            ]
            expected[exhibits.thumbnail(image)] = replayed
    assert len({sheet.picture for sheet in sheets}) == 6
    assert all(sheet.views == expected[sheet.picture] for sheet in sheets)


def test_caption_examples__belong_to_their_picture(found):
    data, content, _ = found
    rows = exhibits.caption_examples(data, content, seed=0)
    assert len(rows) == 8
    samples = [
        (exhibits.thumbnail(decode(sample.image)), sample.captions, f"synthetic {index}")
        for shard in content.split("train")
        for reader in [ShardReader(data, shard)]
        for index, sample in enumerate(reader.sample(i) for i in range(len(reader)))
    ]
    for row in rows:
        assert (row.picture, row.original, row.synthetic["coca"][0]) in samples


def test_without_columns_there_is_nothing_to_show(found):
    data, content, _ = found
    bare = content.model_copy(update={"columns": []})
    assert exhibits.contact_sheet(data, bare, size=64, interpolation="bilinear", seed=0) == []
    assert exhibits.caption_examples(data, bare, seed=0) == []


def test_thumbnail__small_and_like_the_picture():
    picture = Image.new("RGB", (400, 200), (200, 30, 30))
    uri = exhibits.thumbnail(picture)
    assert uri.startswith("data:image/webp;base64,")
    assert pixels(uri).shape == (48, 96, 3)
    assert np.abs(pixels(uri) - [200, 30, 30]).max() < 12
    assert uri == exhibits.thumbnail(picture)
