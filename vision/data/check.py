"""What is wrong and what is odd with data, found before anything is trained on them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image

from coe_core.support.progress import progress
from vision.data.copies import SplitFiles, tell_copies
from vision.data.decode import MAX_UNREADABLE, content_key, num_processors
from vision.data.files import image_formats, open_regular, printable
from vision.data.held_out import why_none_is_held_out
from vision.data.load import find_source
from vision.data.near_copies import SIDE, compare, find_pairs
from vision.data.opening import open_image
from vision.data.preprocess import Preprocess, UnreadableImageError
from vision.data.samples import Samples, Source
from vision.data.section import Data
from vision.data.shards import Member
from vision.data.table import is_table_of, read_labels, table_problems

FEW = 10  # training images of a class, below which it is told
IMBALANCE = 10.0  # of the largest class to the smallest, from which on it is told
ELONGATED = 3.0  # longer to shorter side, from which on a crop loses most of a picture
SPREAD = 10.0  # of the shorter sides, from which on it is told
_SHOWN = 3  # examples of a finding


class Finding(NamedTuple):
    """What is wrong (training on it is refused, or misleads), or only odd."""

    is_wrong: bool
    text: str


class FileFacts(NamedTuple):
    """What a file holds; ``error`` says why nothing is known."""

    size: tuple[int, int] = (0, 0)  # width and height in pixels
    mode: str = ""  # Pillow's
    kind: str = ""  # Pillow's name of the format
    frames: int = 1
    digest: int = 0
    thumbnail: bytes = b""  # SIDE x SIDE in grey
    highest: int | None = None  # of the pixels, where they have more than 8 bits
    error: str = ""


class Checked(NamedTuple):
    """A split that was read."""

    paths: Sequence
    targets: np.ndarray
    facts: list[FileFacts]


class Report(NamedTuple):
    """What `check_data` found.

    Attributes:
        summary: lines about what there is.
        findings: those that are wrong first.
    """

    summary: list[str]
    findings: list[Finding]

    @property
    def is_wrong(self) -> bool:
        """Whether anything is."""
        return any(finding.is_wrong for finding in self.findings)


def check_data(data: Data) -> Report:
    """Read a folder or a table, every file of it, and tell what is wrong and what is odd.

    Args:
        data: the section of a recipe: a data set of files, its path, columns, group and limit of pixels.

    Raises:
        ValueError: a data set that holds no files.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        problems: Sequence[str] = []
        if is_table_of(data.name, data.path):
            problems = table_problems(
                read_labels(data.path or "", data.columns, data.group, data.images)
            )
        if problems:
            return Report([], [Finding(True, line) for line in problems])
        try:
            source = find_source(data)
        except (ValueError, OSError) as error:
            return Report([], [Finding(True, " ".join(str(error).split()))])
        impossible = why_none_is_held_out(data, source)
    splits = {
        split: samples
        for split in ("train", "validation", "test")
        if (samples := getattr(source, split)) is not None
    }
    if any(samples.paths is None for samples in splits.values()):
        raise ValueError(f"{data.name} comes whole: there are no files to check")
    checked = {split: _look_at_all(samples, data, split) for split, samples in splits.items()}
    findings = [Finding(False, str(warning.message)) for warning in told]
    findings += [Finding(True, impossible)] * bool(impossible)
    findings += [*_unreadable(checked), *_copies(checked), *_conflicts(checked, source.classes)]
    findings += [*_classes(source), *_names(source.classes), *_shapes(checked), *_kinds(checked)]
    findings += [*_neighbours(checked, data, source), *_lacking(splits)]
    return Report(
        _summary(checked, source), sorted(findings, key=lambda finding: not finding.is_wrong)
    )


# Files


def look_at(path: str | Member, look: Preprocess, max_pixels: int | None = None) -> FileFacts:
    """Decode a file as training does, and tell what it holds.

    Args:
        path: of it.
        look: how its pixels are decoded, to `SIDE` x `SIDE`.
        max_pixels: see `Preprocess.load`.
    """
    try:
        small = look.load(path, max_pixels)
    except UnreadableImageError as error:
        return FileFacts(error=str(error))
    mean = small.float().mean(0).round().to(torch.uint8)
    facts = FileFacts(digest=content_key(path), thumbnail=mean.numpy().tobytes())
    with (
        contextlib.suppress(Exception),
        _opened(path) as file,
        open_image(file, max_pixels) as image,
    ):
        frames, deep = getattr(image, "n_frames", 1), image.mode.startswith("I")
        facts = facts._replace(
            size=image.size, mode=image.mode, kind=image.format or "", frames=frames
        )
        if deep:
            facts = facts._replace(highest=int(np.asarray(image).max()))
    return facts


def _opened(path: str | Member) -> BinaryIO:
    return io.BytesIO(path.read_bytes()) if isinstance(path, Member) else open_regular(path)


def _look_at_all(samples: Samples, data: Data, split: str) -> Checked:
    assert samples.paths is not None
    channels = 1 if data.channels in (1, 3) else data.channels
    values = data.preprocess().range
    looking = Preprocess(SIDE, channels, (0.0,) * channels, (1.0,) * channels, range=values)
    look = partial(look_at, look=looking, max_pixels=data.max_pixels)
    with ThreadPoolExecutor(min(8, num_processors())) as threads:
        try:
            found = threads.map(look, samples.paths)
            facts = list(progress(found, len(samples.paths), f"checking {split}"))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return Checked(samples.paths, samples.targets.numpy(), facts)


def _unreadable(checked: Mapping[str, Checked]) -> Iterator[Finding]:
    for split, part in checked.items():
        errors = [facts.error for facts in part.facts if facts.error]
        if errors:
            refused = len(errors) >= MAX_UNREADABLE * len(part.facts)
            what = "training refuses the set" if refused else "training leaves them out"
            more = f"; and {len(errors) - _SHOWN} more" * (len(errors) > _SHOWN)
            yield Finding(
                True,
                f"{len(errors)} of {len(part.facts)} images of {split} are unreadable, so {what}: "
                f"{'; '.join(errors[:_SHOWN])}{more}",
            )


def _readable(checked: Mapping[str, Checked]) -> list[tuple[Any, FileFacts]]:
    """Image and facts of all that could be read."""
    return [
        (path, facts)
        for part in checked.values()
        for path, facts in zip(part.paths, part.facts, strict=True)
        if facts.kind
    ]


def _shapes(checked: Mapping[str, Checked]) -> Iterator[Finding]:
    known = _readable(checked)
    if not known:
        return
    sides = np.array([facts.size for _, facts in known])
    short, long = sides.min(1), sides.max(1)
    if short.max() >= SPREAD * short.min():
        yield Finding(
            False,
            f"the shorter sides differ {short.max() / short.min():.3g}-fold, from {short.min()} to "
            f"{short.max()} px (middle {int(np.median(short))}); the smallest is "
            f"{_shown([known[int(short.argmin())][0]])}; small ones are enlarged",
        )
    thin = np.flatnonzero(long >= ELONGATED * short)
    if len(thin):
        yield Finding(
            False,
            f"{len(thin)} images are at least {ELONGATED:g} times as long as wide "
            f"({_shown([known[i][0] for i in thin])}); data.resize=crop keeps their middle only",
        )


def _kinds(checked: Mapping[str, Checked]) -> Iterator[Finding]:
    known = _readable(checked)
    modes = Counter(facts.mode for _, facts in known)
    if len(modes) > 1:
        listed = ", ".join(f"{mode} {count:,}" for mode, count in modes.most_common())
        rarest = modes.most_common()[-1][0]
        example = next(path for path, facts in known if facts.mode == rarest)
        yield Finding(
            False,
            f"pictures of {len(modes)} kinds (Pillow's modes {listed}; {rarest}: {_shown([example])}); all "
            "become data.channels",
        )
    highest = max((facts.highest for _, facts in known if facts.highest is not None), default=None)
    if highest is not None and 255 < highest < 2**15:
        yield Finding(
            False,
            f"pixels of 16 bits reach {highest:,} at most, of 65,535, so they are dark: "
            f"data.range=[0,{2 ** highest.bit_length() - 1}] uses what they hold",
        )
    several = [path for path, facts in known if facts.frames > 1]
    if several:
        yield Finding(
            False,
            f"{len(several)} files hold several frames, of which the first counts ({_shown(several)})",
        )
    plain = [path for path, facts in known if len(set(facts.thumbnail)) == 1]
    if plain:
        yield Finding(False, f"{len(plain)} images are of one colour ({_shown(plain)})")
    endings = image_formats().endings
    expected = {ending: Image.EXTENSION.get(ending) for ending in endings}
    wrong = [
        (path, facts.kind)
        for path, facts in known
        if isinstance(path, str)
        and (ending := "." + path.rpartition(".")[2].lower()) in expected
        and expected[ending] not in (facts.kind, None)
        and {expected[ending], facts.kind} != {"JPEG", "MPO"}
    ]
    if wrong:
        path, kind = wrong[0]
        yield Finding(
            False,
            f"{len(wrong)} files are of another format than their ending says ({_shown([path])} is {kind}); "
            "they are read as what they are",
        )


# Labels


def _classes(source: Source) -> Iterator[Finding]:
    counts = np.bincount(source.train.targets.numpy(), minlength=len(source.classes))
    few = [
        f"{printable(source.classes[c])} {counts[c]}"
        for c in np.argsort(counts, kind="stable")
        if counts[c] < FEW
    ]
    if few:
        yield Finding(
            False,
            f"{len(few)} of {len(source.classes)} classes have fewer than {FEW} training images: "
            f"{', '.join(few[:10])}{', ...' * (len(few) > 10)}",
        )
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    if counts[largest] >= IMBALANCE * max(1, counts[smallest]):
        yield Finding(
            False,
            f"classes are uneven: {printable(source.classes[largest])} has {counts[largest]:,} training "
            f"images, {printable(source.classes[smallest])} {counts[smallest]:,}",
        )


def _names(classes: Sequence[str]) -> Iterator[Finding]:
    plain: dict[str, list[str]] = {}
    for name in classes:
        plain.setdefault("".join(filter(str.isalnum, name.casefold())) or name, []).append(name)
    alike = [names for names in plain.values() if len(names) > 1]
    if alike:
        yield Finding(
            False,
            f"{len(alike)} classes have two spellings: {' and '.join(map(repr, alike[0]))}; are they one?",
        )


def _lacking(splits: Mapping[str, Samples]) -> Iterator[Finding]:
    if "test" not in splits:
        yield Finding(
            False,
            "no test split: figures come from the validation images, on which choices are made",
        )


def _conflicts(checked: Mapping[str, Checked], classes: Sequence[str]) -> Iterator[Finding]:
    """One content under two labels, and twice under one."""
    first: dict[int, tuple[object, int]] = {}
    conflicts, again = [], []
    for part in checked.values():
        seen: dict[int, object] = {}
        for path, target, facts in zip(part.paths, part.targets.tolist(), part.facts, strict=True):
            if not facts.digest:
                continue
            other, label = first.setdefault(facts.digest, (path, target))
            if label != target:
                conflicts.append((other, label, path, target))
            elif seen.setdefault(facts.digest, path) is not path:
                again.append((seen[facts.digest], path))
    if conflicts:
        ours, label, theirs, target = conflicts[0]
        yield Finding(
            True,
            f"{len(conflicts)} images have two labels: {_shown([ours])} ({classes[label]}) = "
            f"{_shown([theirs])} ({classes[target]}); one of them is wrong",
        )
    if again:
        ours, theirs = again[0]
        yield Finding(
            False,
            f"{len(again)} images are copies of another one of their split ({_shown([theirs])} = "
            f"{_shown([ours])}); they count twice",
        )


# Between files


def _copies(checked: Mapping[str, Checked]) -> Iterator[Finding]:
    splits = {
        split: SplitFiles(part.paths, np.array([f.digest for f in part.facts], dtype=np.uint64))
        for split, part in checked.items()
    }
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tell_copies(splits)
    yield from (Finding(True, str(warning.message)) for warning in told)


def _neighbours(checked: Mapping[str, Checked], data: Data, source: Source) -> Iterator[Finding]:
    part = checked["train"]
    if not all(isinstance(path, str) for path in part.paths[:1]):
        return
    readable = [i for i, facts in enumerate(part.facts) if facts.thumbnail]
    paths, targets = [str(part.paths[i]) for i in readable], part.targets[readable]

    def seen(i: int) -> np.ndarray:
        return np.frombuffer(part.facts[readable[i]].thumbnail, np.uint8).astype(float)

    alike = compare(find_pairs(paths, targets, paths, targets), seen, seen)
    if alike is None or not alike.is_odd:
        return
    grouped = source.group or (None if data.group == "off" else data.group)
    if source.validation is not None:
        advice = "see that no such series lies in two splits"
    elif grouped:
        advice = f"validation is cut by whole groups of {grouped}"
    else:
        advice = "set data.group, or a part held out at random holds near-copies of what is learned"
    yield Finding(False, f"{alike}; {advice}")


def _summary(checked: Mapping[str, Checked], source: Source) -> list[str]:
    counts = ", ".join(f"{split} {len(part.paths):,}" for split, part in checked.items())
    lines = [f"{len(source.classes)} classes; images: {counts}"]
    facts = [facts for part in checked.values() for facts in part.facts if facts.kind]
    if facts:
        kinds = Counter(f.kind for f in facts)
        sides = np.array([f.size for f in facts])
        listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common())
        low, middle, high = sides.min(0), np.median(sides, 0).astype(int), sides.max(0)
        lines.append(f"formats: {listed}")
        lines.append(
            f"width {low[0]} to {high[0]} px (middle {middle[0]}), height {low[1]} to {high[1]} px (middle "
            f"{middle[1]})"
        )
    return lines


def _shown(paths: Sequence) -> str:
    more = ", ..." * (len(paths) > _SHOWN)
    return ", ".join(printable(str(path)) for path in paths[:_SHOWN]) + more
