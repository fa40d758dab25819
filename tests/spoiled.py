"""Albums and data sets as people have them: conditions of `conditions.py` that spoil what a command reads."""

import contextlib
import io
import os
import re
import struct
from pathlib import Path
from random import Random

from PIL import Image

from conditions import ON_ALBUM, ON_SHARDS, Trial, condition
from fakes import write_cifar10
from workspace import copy_shards

ARCHIVED = 2
"""Images of each of an archive's six files."""


def another(chance: Random, side: int = 48) -> Image.Image:
    """A picture like no other, in colour, with some structure."""
    small = Image.frombytes("RGB", (6, 6), chance.randbytes(108))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def picture(t: Trial, name: str | bytes) -> Path:
    """Another picture in the album, which counts."""
    t.entries += 1
    path = Path(os.fsdecode(os.path.join(os.fsencode(t.album), os.fsencode(name))))
    path.parent.mkdir(exist_ok=True)
    another(t.chance).save(path, "PNG")
    return path


@condition(*ON_ALBUM)
def hidden_thumbnails(t: Trial) -> None:
    hidden = t.album / t.chance.choice((".thumbnails", ".cache", ".Trash-0"))
    hidden.mkdir()
    for path in sorted(t.album.glob("*.png"))[:9]:
        with Image.open(path) as image:
            image.resize((24, 24)).save(hidden / path.name)


@condition(*ON_ALBUM)
def near_copies(t: Trial) -> None:
    for path in t.chance.sample(sorted(t.album.glob("*0.png")), 3):
        with Image.open(path) as image:
            if t.chance.random() < 0.5:
                image.resize((32, 32), Image.Resampling.LANCZOS).save(path.with_suffix(".webp"), quality=90)
            else:
                image.save(path.with_suffix(".jpg"), quality=80)
                t.same &= t.command != "build"  # of equal sizes the first name is kept
        t.entries += 1


@condition(*ON_ALBUM)
def closed_folder(t: Trial) -> None:
    closed = t.album / "private"
    closed.mkdir()
    another(t.chance).save(closed / "x.png")
    closed.chmod(t.chance.choice((0o000, 0o100)))
    t.entries += 1  # the folder, as left out


@condition(*ON_ALBUM)
def closed_file(t: Trial) -> None:
    picture(t, "closed.png").chmod(0o000)


@condition(*ON_ALBUM)
def linked_album(t: Trial) -> None:
    other = t.folder / "elsewhere"
    other.mkdir(exist_ok=True)
    for path in sorted(t.album.glob("*0.png"))[:7]:
        path.rename(other / path.name)
    (t.album / "link").symlink_to(other)
    if t.chance.random() < 0.5:
        (t.album / "again").symlink_to(other)
        (other / "back").symlink_to(t.album)
        t.entries += 2
    t.same = False


@condition(*ON_ALBUM)
def bad_links(t: Trial) -> None:
    (t.album / "dangling.png").symlink_to("nowhere")
    (t.album / "loop.png").symlink_to("loop.png")
    (t.album / "gone album").symlink_to("/not/mounted")
    t.entries += 3


@condition(*ON_ALBUM)
def pipe(t: Trial) -> None:
    os.mkfifo(t.album / "x.jpg")
    t.entries += 1


@condition(*ON_ALBUM)
def odd_names(t: Trial) -> None:
    names = (
        b"caf\xe9.png", b"f\xe9te/a.png", b"a\nb.png", b"\x1b[31m.png", b"-x.png",
        b"a" * 240 + b".png", b'c,"d.png',
    )  # fmt: skip
    for name in t.chance.sample(names, 2):
        picture(t, name)
    t.same = False


@condition(*ON_ALBUM)
def odd_exif(t: Trial) -> None:
    entries = (
        (2, 4, b"6\0\0\0"),  # a text
        (3, 2, struct.pack("<HH", 6, 6)),
        (5, 1, struct.pack("<I", 26)),
        (12, 1, struct.pack("<I", 4000)),  # behind the end
    )
    for number, (kind, count, value) in enumerate(entries):
        head = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI", 274, kind, count) + value + b"\0\0\0\0"
        path = picture(t, f"exif{number}.{t.chance.choice(('png', 'jpg', 'webp'))}")
        another(t.chance).save(path, exif=b"Exif\0\0" + head + b"\1\0\0\0\2\0\0\0")
    t.same = False


@condition(*ON_ALBUM)
def damaged_picture(t: Trial) -> None:
    for number in range(2):
        path = picture(t, f"bad{number}.png")
        whole = path.read_bytes()
        cut = t.chance.randrange(len(whole))
        garbled = whole[:cut] + t.chance.randbytes(9) + whole[cut + 9 :]
        path.write_bytes(t.chance.choice((whole[:cut], b"", garbled)))
    t.same = False


@condition(*ON_ALBUM)
def other_formats(t: Trial) -> None:
    kinds = ("gif", "bmp", "tif", "jfif", "webp", "tga", "ppm", "avif", "heic", "cr2", "svg")
    for suffix in t.chance.sample(kinds, 4):
        content = io.BytesIO()
        with contextlib.suppress(KeyError, ValueError, OSError):
            another(t.chance).save(content, {"jfif": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        (t.album / f"kind.{suffix}").write_bytes(content.getvalue() or b"whatever")
        t.entries += 1
    (t.album / "notes.txt").write_text("no picture")
    t.said.append("passed over: 1 file that is no picture")
    t.same = False


@condition(*ON_ALBUM)
def odd_pictures(t: Trial) -> None:
    another(t.chance, 1).save(picture(t, "one.png"))
    Image.new("RGB", (300, 1)).save(picture(t, "line.png"))
    frames = [another(t.chance) for _ in range(3)]
    frames[0].save(picture(t, "moving.gif"), "GIF", save_all=True, append_images=frames[1:])
    another(t.chance).convert("L").convert("I").save(picture(t, "deep.tif"), "TIFF")
    another(t.chance).convert("L").convert("F").save(picture(t, "float.tiff"), "TIFF")


@condition("build")
def touched_file(t: Trial) -> None:
    t.before.append(
        "import os, sys; from data_prep.cli import main as first; "
        "assert first(sys.argv[2:]) in (0, 1); name = sorted(os.listdir('album'))[-1]; "
        "os.utime(os.path.join('album', name), ns=(1, 1), follow_symlinks=False)"
    )
    t.may_refuse("changed or touched", "new: ", "gone: ")


@condition("build")
def renamed_archive(t: Trial) -> None:
    src = t.folder / "downloads"
    write_cifar10(src, ARCHIVED, archive=True)
    (archive,) = src.iterdir()
    archive = archive.rename(src / "mine.tar.gz")
    given = t.chance.choice((archive, src))
    t.source = ["cifar10", "--src", str(given)]
    t.same = False
    if given == src:
        t.may_refuse(r"it holds mine\.tar\.gz")


# Data sets.


@condition(*ON_SHARDS)
def damaged_shard(t: Trial) -> None:
    _own_shards(t)
    path = t.chance.choice(sorted(t.shards.glob("*.tar")))
    content = bytearray(path.read_bytes())
    place = t.chance.randrange(len(content))
    how = t.chance.choice(("cut", "flip", "gone", "empty", "zeros"))
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[:place])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        part = content[place : place + 600]
        content[place : place + 600] = bytes(b ^ 255 if how == "flip" else 0 for b in part)
        path.write_bytes(content)
    t.may_refuse("shard", r"\.tar", "cannot be read", "images")
    t.same = False


@condition(*ON_SHARDS)
def hostile_manifest(t: Trial) -> None:
    _own_shards(t)
    path = t.shards / "manifest.json"
    text = path.read_text()
    numbers = ("9" * 400, "9" * 5000, "1e999", "-1", "NaN", "1.5", '"7"', "null", "[]", "true")
    number = t.chance.choice(numbers)
    key = t.chance.choice(('"images": ', '"bytes": ', '"pixel_mean": ', '"format": '))
    start = t.chance.choice([found.end() for found in re.finditer(key, text)])
    stop = start + next(k for k, sign in enumerate(text[start:]) if sign in ",\n}")
    path.write_text(text[:start] + number + text[stop:])
    t.may_refuse("manifest.json", "manifest")
    t.same = False


@condition(*ON_SHARDS)
def read_only_shards(t: Trial) -> None:
    _own_shards(t)
    for path in (*t.shards.rglob("*"), t.shards):
        path.chmod(0o555 if path.is_dir() else 0o444)


@condition("train", "evaluate")
def read_only_cache(t: Trial) -> None:
    """Filled by `faults.py`, from a server that serves the undisturbed shards."""


def _own_shards(t: Trial) -> None:
    """A copy to spoil, in place of a link."""
    if t.shards.is_symlink():
        real = t.shards.resolve()
        t.shards.unlink()
        copy_shards(real, t.shards)
