"""Readers, the shared cache and the order of pictures."""

import io
import json
import logging
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.batches import EvaluationOrder, PictureDataset, TrainingOrder, load, to_float, to_uint8
from training.data.sources import DataError, SceneSource, has_captions, open_split

CPU = torch.device("cpu")


def png(colour, size=(10, 10)) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size, colour).save(held, "PNG")
    return held.getvalue()


def everything(dataset, workers=0, batch_size=3):
    batches = list(load(dataset, EvaluationOrder(len(dataset), batch_size), workers, CPU))
    return torch.cat([images for images, _ in batches]), torch.cat([indices for _, indices in batches])


FILES = {"cats/a.png": png((250, 0, 0)), "cats/b.png": png((200, 0, 0)), "dogs/c.png": png((0, 0, 150))}
METADATA = "".join(json.dumps({"file_name": name, "captions": [f"picture {name}"]}) + "\n" for name in ("cats/b.png", "dogs/c.png"))


def write_tree(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


LAYOUTS = {
    "folder": lambda root, files: write_tree(root / "train", files),
    "zip of a split": lambda root, files: write_zip(root / "train.zip", files),
    "wrapped zip of a split": lambda root, files: write_zip(root / "train.zip", {f"train/{name}": content for name, content in files.items()}),
    "one zip": lambda root, files: write_zip(root / "all.zip", {f"train/{name}": content for name, content in files.items()}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("described", [False, True])
def test_every_layout_gives_the_same_pictures(tmp_path, layout, described):
    files = FILES | ({"metadata.jsonl": METADATA.encode()} if described else {})
    LAYOUTS[layout](tmp_path, files)
    source = open_split(tmp_path / "all.zip" if layout == "one zip" else tmp_path, "train")
    images, indices = everything(PictureDataset(source, 5))
    records = [source.record(index) for index in indices.tolist()]
    if described:
        assert [record["captions"] for record in records] == [["picture cats/b.png"], ["picture dogs/c.png"]]
        assert images[:, 0, 2, 2].tolist() == [200, 0]
    else:
        assert [record["label"] for record in records] == ["cats", "cats", "dogs"]
        assert images[:, :, 2, 2].tolist() == [[250, 0, 0], [200, 0, 0], [0, 0, 150]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_class_folder_is_refused_and_one_of_other_files_named(tmp_path, layout, caplog):
    write = LAYOUTS[layout]
    if layout == "folder":
        write(tmp_path, FILES)
        (tmp_path / "train" / "emus").mkdir()
        (tmp_path / "train" / ".cache").mkdir()
    else:
        write(tmp_path, FILES | {"emus/": b""})
    data = tmp_path / "all.zip" if layout == "one zip" else tmp_path
    with pytest.raises(DataError, match="empty class folders in .*train.*: expected pictures in emus .*or no such folder"):
        open_split(data, "train")
    write(tmp_path, FILES | {"emus/about.txt": b"no picture"})
    assert len(open_split(data, "train")) == 3 and "no pictures in the folders emus, which are no classes" in caplog.text


def test_folders_beside_pictures_that_lie_in_none_are_no_classes(tmp_path):
    write_tree(tmp_path / "train", {"a.png": FILES["cats/a.png"]})
    (tmp_path / "train" / "notes").mkdir()
    assert open_split(tmp_path, "train").record(0) == {"file_name": "a.png"}


@pytest.mark.parametrize("captions", ["a dog", 3, ["a dog", None], {"en": "a dog"}])
def test_captions_that_are_no_list_of_strings_are_refused(tmp_path, captions):
    lines = [{"file_name": "a.png", "captions": ["a cat"]}, {"file_name": "b.png", "captions": captions}]
    write_tree(tmp_path / "train", {"metadata.jsonl": "\n".join(map(json.dumps, lines)).encode()})
    with pytest.raises(DataError, match="metadata.jsonl, line 2: captions: expected a list of strings, got .*"):
        open_split(tmp_path, "train")


def test_null_captions_are_none(tmp_path):
    write_tree(tmp_path / "train", {"metadata.jsonl": b'{"file_name": "a.png", "captions": null}'})
    assert open_split(tmp_path, "train").record(0) == {"file_name": "a.png"} and not has_captions(open_split(tmp_path, "train"))


def test_worker_processes_read_a_zip(tmp_path):
    write_zip(tmp_path / "train.zip", {f"c/{n:02d}.png": png((n, 2 * n, 7)) for n in range(40)})
    images, indices = everything(PictureDataset(open_split(tmp_path, "train"), 4), workers=2)
    assert images[:, 0, 0, 0].tolist() == indices.tolist() == list(range(40))


def test_a_broken_picture_is_named_once_and_skipped(tmp_path, caplog):
    held = io.BytesIO()
    Image.effect_noise((32, 32), 50).save(held, "PNG")
    write_tree(tmp_path / "test", FILES | {"cats/broken.png": held.getvalue()[:400], "dogs/text.jpg": b"no picture"})
    dataset = PictureDataset(open_split(tmp_path, "test"), 8)
    with caplog.at_level(logging.WARNING, "training"):
        images, _ = everything(dataset)
        everything(dataset)
    assert len(images) == 3
    assert [name.rsplit("/", 1)[1] for name in dataset.broken()] == ["broken.png", "text.jpg"]
    assert sum("broken.png" in message for message in caplog.messages) == 1
    images, indices = PictureDataset(dataset.source, 8, replace_broken=True).__getitems__([(0, 0), (0, 2), (0, 4)])
    assert indices.tolist() == [0, 3, 0] and len(images) == 3


def test_a_split_without_a_readable_picture_is_refused(tmp_path):
    write_tree(tmp_path / "train", {"a.png": b"nothing", "b.png": b"nothing"})
    with pytest.raises(DataError, match="none of the 2 pictures"):
        PictureDataset(open_split(tmp_path, "train"), 8, replace_broken=True).__getitems__([(0, 0)])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no .*nowhere"):
        open_split(tmp_path / "nowhere", "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="no pictures in .*train"):
        open_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"no split 'val'.*found \['train'\]"):
        open_split(tmp_path, "val")
    with pytest.raises(ValueError, match="scenes has train, val, test, got 'dev'"):
        open_split("scenes", "dev")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="neither a folder nor a readable zip"):
        open_split(tmp_path / "text.zip", "train")


@pytest.mark.parametrize("line", ["{", "[1]", '{"captions": []}'])
def test_a_bad_line_of_metadata_is_named(tmp_path, line):
    write_tree(tmp_path / "train", FILES | {"metadata.jsonl": f'{{"file_name": "cats/a.png"}}\n{line}\n'.encode()})
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 2"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_decoded_once(pictures, workers):
    dataset = PictureDataset(open_split(pictures, "train"), 16)
    first, _ = everything(dataset, workers)
    for picture in (pictures / "train").glob("*.png"):
        picture.unlink()
    second, _ = everything(dataset, workers)
    assert torch.equal(first, second) and len(first) == 20 and not dataset.broken()


def test_above_the_budget_pictures_are_decoded_every_time(pictures):
    dataset = PictureDataset(open_split(pictures, "train"), 16, memory_budget=20 * 16 * 16 * 3 - 1)
    assert not dataset.kept_in_memory
    first, _ = everything(dataset)
    assert torch.equal(first, everything(PictureDataset(dataset.source, 16))[0])
    (pictures / "train" / "03.png").unlink()
    assert everything(dataset)[1].tolist() == [n for n in range(20) if n != 3]


def test_crop_keeps_the_middle_and_stretch_the_whole(tmp_path):
    wide = Image.new("RGB", (40, 10), (0, 0, 0))
    wide.paste((255, 255, 255), (15, 0, 25, 10))
    (tmp_path / "train").mkdir()
    wide.save(tmp_path / "train" / "wide.png")
    wide.resize((10, 40)).save(tmp_path / "train" / "high.png")
    cropped = everything(PictureDataset(open_split(tmp_path, "train"), 10))[0]
    assert cropped[1].float().mean() == 255
    stretched = everything(PictureDataset(open_split(tmp_path, "train"), 40, fit="stretch"))[0]
    assert stretched[1, 0, 20, 20] == 255 and stretched[1, 0, 20, 2] == 0


def test_masks_are_cut_like_their_pictures(tmp_path):
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[:, 5:15] = np.arange(10)[:, None]
    write_tree(tmp_path / "train", {"a.png": png((1, 2, 3), (20, 10)), "metadata.jsonl": b'{"file_name": "a.png", "mask": "masks/a.png"}\n'})
    (tmp_path / "train" / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "train" / "masks" / "a.png")
    assert open_split(tmp_path, "train").read_mask(0, 10, "crop").tolist() == [[row] * 10 for row in range(10)]
    scene = SceneSource("val")
    assert scene.read_mask(0, 32, "crop").shape == (32, 32)


def test_the_stream_is_a_permutation_in_every_epoch():
    keys = [key for batch in TrainingOrder(10, 4, seed=3, last=10) for key in batch]
    assert [epoch for epoch, _ in keys] == [number // 10 for number in range(40)]
    epochs = [[index for epoch, index in keys if epoch == wanted] for wanted in range(4)]
    assert all(sorted(order) == list(range(10)) for order in epochs) and len({tuple(order) for order in epochs}) == 4
    assert keys != [key for batch in TrainingOrder(10, 4, seed=4, last=10) for key in batch]


def test_the_stream_starts_anywhere_and_is_shared_by_ranks():
    whole = list(TrainingOrder(10, 4, seed=3, last=12))
    assert list(TrainingOrder(10, 4, seed=3, first=7, last=12)) == whole[7:]
    ranks = [list(TrainingOrder(10, 2, seed=3, last=12, rank=rank, world=2)) for rank in (0, 1)]
    assert [one + other for one, other in zip(*ranks)] == whole


def test_workers_change_nothing(pictures):
    def stream(workers):
        dataset = PictureDataset(open_split(pictures, "train"), 16, flip_seed=5)
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        batches = list(load(dataset, TrainingOrder(20, 8, seed=1, last=6), workers, CPU))
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([images for images, _ in batches])

    assert torch.equal(stream(0), stream(2))


def test_half_of_the_pictures_are_mirrored_and_always_the_same_half(pictures):
    source = open_split(pictures, "train")
    plain = everything(PictureDataset(source, 16))[0]
    keys = [(epoch, index) for epoch in range(10) for index in range(20)]
    images, _ = PictureDataset(source, 16, flip_seed=0).__getitems__(keys)
    mirrored = torch.tensor([torch.equal(image, plain[index].flip(-1)) for image, (_, index) in zip(images, keys)])
    kept = torch.tensor([torch.equal(image, plain[index]) for image, (_, index) in zip(images, keys)])
    assert (mirrored ^ kept).all() and 70 < int(mirrored.sum()) < 130
    assert torch.equal(images, PictureDataset(source, 16, flip_seed=0).__getitems__(keys)[0])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_takes_every_picture_once(world):
    seen = [index for rank in range(world) for batch in EvaluationOrder(23, 4, rank, world) for _, index in batch]
    assert sorted(seen) == list(range(23))


def test_eight_bits_survive_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    floats = to_float(values, CPU)
    assert floats.min() == -1 and floats.max() == 1
    assert torch.equal(to_uint8(floats), values)
