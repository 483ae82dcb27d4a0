"""Data of the tasks of pretrained networks: what is found where, in which parts, and what is refused."""

from __future__ import annotations

import csv
import json

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.clustering.samplers import ShuffleSampler
from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.classes import macro_f1
from hybridkit.tasks.datafiles import find_files, part_of
from hybridkit.tasks.resolve import make_task

ROWS = [{"text": f"word {i} " + "more " * (i % 7), "label": ("no", "yes")[i % 2]} for i in range(40)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)


@pytest.fixture
def classify(tiny):
    def task(where, **options):
        return make_task("text-classification", {"model": tiny("bert"), "data_dir": str(where), **options})

    return task


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_tables_of_every_format_hold_the_same(suffix, classify, tmp_path):
    write(tmp_path / f"rows{suffix}", ROWS)
    task = classify(tmp_path)
    splits = task.splits()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (32, 4, 4)
    assert task.labels.names == ["no", "yes"]
    for part in (splits.train, splits.validation, splits.test):
        assert {row["label"] for row in part.__getitems__(range(len(part)))} == {0, 1}
        for row in part.__getitems__(range(len(part))):
            number = int(row["text"].split()[1])
            assert row["text"] == ROWS[number]["text"]
            assert row["label"] == number % 2


def test_parts_are_known_by_name(classify, tmp_path):
    for part, rows in (("train", ROWS[:20]), ("dev", ROWS[20:30]), ("test", ROWS[30:])):
        write(tmp_path / f"mine-{part}.jsonl", rows)
    splits = classify(tmp_path).splits()
    for part, rows in ((splits.train, ROWS[:20]), (splits.validation, ROWS[20:30]), (splits.test, ROWS[30:])):
        assert {row["text"] for row in part.__getitems__(range(len(part)))} == {row["text"] for row in rows}


@pytest.mark.parametrize("row", [{"text": "unknown", "label": None}, {"text": "unknown"}])
def test_a_part_without_labels_is_cut_anew(row, classify, tmp_path):
    for part, rows in (("train", ROWS), ("test", [row] * 3)):
        write(tmp_path / f"{part}.jsonl", rows)
    splits = classify(tmp_path).splits()
    assert (len(splits.train), len(splits.test)) == (32, 4)


def test_what_datasets_saved(classify, tmp_path):
    made = datasets.Dataset.from_list(ROWS).class_encode_column("label")
    datasets.DatasetDict(train=made, validation=made.select(range(5))).save_to_disk(tmp_path / "saved")
    task = classify(tmp_path / "saved")
    assert task.labels.names == ["no", "yes"]
    assert len(task.splits().validation) == 5
    made.save_to_disk(tmp_path / "alone")
    assert len(classify(tmp_path / "alone").splits().train) == 32


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"words": "a", "label": 1}, {"words": "a", "label": 2}] * 9, {}, "has no column called text"),
        (ROWS, {"text_column": "body"}, "has no column 'body'; it has text, label"),
        ([{"text": "a b"}] * 9, {}, "has no column called label"),
        ([{"text": 3, "label": 1}, {"text": 3, "label": 2}] * 9, {}, "column 'text' holds int64, not text"),
        ([*ROWS, {"text": "x", "label": None}], {}, "row 40 of the train data has no label"),
        (ROWS[:2], {}, "too few"),
        ([{"text": "a\0b", "label": 1}, {"text": "c", "label": 2}] * 9, {}, "NUL"),
    ],
)
def test_tables_that_do_not_fit_get_one_line(rows, options, message, classify, tmp_path):
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises((FileError, UsageError), match=message) as caught:
        classify(tmp_path, **options).splits()
    assert "\n" not in str(caught.value)


def test_a_part_without_text(classify, tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.csv", [{"words": "x", "label": "yes"}])
    with pytest.raises(FileError, match="a part of the data has no column 'text'; it has words, label"):
        classify(tmp_path).splits()


def test_a_label_that_training_data_lack(classify, tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"text": "x", "label": "maybe"}])
    with pytest.raises(FileError, match="row 0 of the test data has the label 'maybe', which the training"):
        classify(tmp_path).splits()


def test_a_score_that_is_no_number(tiny, tmp_path):
    write(tmp_path / "rows.jsonl", [{"sentence1": "a", "sentence2": "b", "score": "high"}] * 9)
    task = make_task("text-embedding", {"model": tiny("bert"), "data_dir": str(tmp_path)})
    with pytest.raises(FileError, match="row 0 of the train data has the score 'high', no number"):
        task.splits()


def test_files_that_are_not_what_they_are_called(classify, tiny, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(bytes(range(256)))
    with pytest.raises(FileError, match="cannot be read"):
        classify(tmp_path).splits()
    (tmp_path / "novel.txt").write_bytes(b"\x89PNG\xff\xfe" * 99)
    for task in ("causal-lm", "text-embedding"):
        made = make_task(task, {"model": tiny("bert"), "data_dir": str(tmp_path / "novel.txt")})
        with pytest.raises(FileError, match="not text"):
            made.splits()


def test_images_that_are_none(tiny, tmp_path):
    task = make_task("image-classification", {"model": tiny("vit"), "data_dir": str(tmp_path)})
    with pytest.raises(FileError, match="images in one folder per class"):
        task.splits()
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(9):
            (tmp_path / label / f"{i}.png").write_bytes(b"no image")
    splits = task.splits()
    assert (len(splits.train), len(splits.test)) == (14, 2)
    with pytest.raises(FileError, match="a sample cannot be read"):
        splits.train[0]
    one = make_task("image-classification", {"model": tiny("vit"), "data_dir": str(tmp_path / "a")})
    with pytest.raises(FileError, match="label is a; give two classes at least"):
        one.splits()


@pytest.mark.parametrize("text", ["", "\n \n\n"])
def test_text_without_a_word(text, tiny, tmp_path):
    (tmp_path / "a.txt").write_text(text)
    for task in ("causal-lm", "text-embedding"):
        made = make_task(task, {"model": tiny("bert"), "data_dir": str(tmp_path)})
        with pytest.raises(FileError, match=r"too few|holds no|no training data"):
            made.splits()


def test_nothing_there(classify, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="holds no data that this task reads: text"):
        classify(tmp_path / "empty").splits()
    with pytest.raises(FileError, match="does not exist"):
        classify(tmp_path / "absent").splits()
    with pytest.raises(UsageError, match="--data-dir"):
        classify("").splits()


def test_a_folder_is_what_most_of_its_files_are(tmp_path):
    for name in ("a.py", "b.py", "c/d.py", "e.json", ".git/x.json", ".git/y.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files(str(tmp_path), ("text", "tables"), (".py", ".md"))
    assert found.kind == "text"
    assert found.names() == ["README.md", "a.py", "b.py", "c/d.py"]
    (tmp_path / "table").mkdir()
    for name in ("table/README.md", "table/train.jsonl"):
        (tmp_path / name).write_text("x")
    found = find_files(str(tmp_path / "table"), ("text", "tables"), (".py", ".md"))
    assert (found.kind, found.names()) == ("tables", ["train.jsonl"])


def test_a_source_tree_with_a_folder_of_tests_is_all_for_training(tmp_path):
    for name in ("test/a.py", "b.py", "test_c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files(str(tmp_path), ("text",), (".py",))
    assert found.names() == ["b.py", "test/a.py", "test_c.py"]
    assert list(found.parts) == ["train"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "d.py").write_text("x")
    found = find_files(str(tmp_path), ("text",), (".py",))
    assert {part: len(files) for part, files in found.parts.items()} == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("name", "part"), [("train-00000-of-2", "train"), ("stsb_dev", "validation"), ("latest", None)]
)
def test_parts_by_name(name, part):
    assert part_of(name) == part


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=400),
    batch_size=st.integers(1, 16),
    seed=st.integers(0, 9),
)
def test_batches_by_length_show_every_sample_once(lengths, batch_size, seed):
    lengths = np.array(lengths)
    sampler = ShuffleSampler(np.zeros(len(lengths), np.int64), batch_size, seed, lengths)
    drawn = [next(sampler).indices for _ in range(sampler.steps_per_epoch)]
    assert sorted(torch.cat(drawn).tolist()) == list(range(len(lengths)))
    assert max(map(len, drawn)) - min(map(len, drawn)) <= 1
    plain = ShuffleSampler(np.zeros(len(lengths), np.int64), batch_size, seed)
    others = [next(plain).indices for _ in range(plain.steps_per_epoch)]

    def padded(batches):
        return sum(len(batch) * int(lengths[batch.numpy()].max()) for batch in batches)

    if len({len(batch) for batch in drawn}) == 1:
        assert padded(drawn) <= padded(others)


def test_batches_by_length_go_on_where_they_were():
    lengths = np.random.default_rng(0).integers(1, 99, 100)
    one, two = (ShuffleSampler(np.zeros(100, np.int64), 8, 0, lengths) for _ in range(2))
    for _ in range(20):
        next(one)
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(next(one).indices, next(two).indices) for _ in range(20))
    other = ShuffleSampler(np.zeros(100, np.int64), 8, 0, lengths + 1)
    with pytest.raises(FileError, match="labels_crc32"):
        other.load_state_dict(one.state_dict())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_is_that_of_scikit_learn(pairs):
    from sklearn.metrics import f1_score

    labels, guessed = (torch.tensor(x) for x in zip(*pairs, strict=True))
    expected = f1_score(labels, guessed, average="macro", zero_division=0)
    assert macro_f1(labels, guessed) == pytest.approx(expected)
