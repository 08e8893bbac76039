"""The layouts of benchmark folders: one folder per scene, one per role, or all pictures in one folder."""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from pathlib import Path

from ffmef.errors import counted
from ffmef.evaluation import roles
from ffmef.evaluation.found import Failure, Found, Pair
from ffmef.imaging.io import FORMATS

LISTED = 6  # names in a message, before "and N more"
CLOSE = 0.75  # least similarity of a file's name to its folder's that counts as a misspelling
DEPTH = 3  # levels of folders searched for pairs
MOST_NUMBERED = 9  # frames per scene where only numbers tell them apart in one folder
NUMBER = re.compile(r"(?:ev ?)?[-+]?\d+(?:\.\d+)?(?: ?ev)?$", re.IGNORECASE)  # after a frame's name: number or exposure
NO_SCENES = {
    "label", "labels", "gt", "groundtruth", "ground_truth", "reference", "fused", "fusion", "result", "results",
    "output", "outputs", "out",
}  # fmt: skip
SOURCE_FOLDERS = ("input", "inputs", "source", "sources", "source_images")


def pictures(folder: Path, deep: bool = False) -> list[Path]:
    """Return the pictures in a folder sorted by name, with those of its subfolders if ``deep``."""
    return sorted(
        path
        for path in (folder.rglob("*") if deep else folder.iterdir())
        if path.suffix.lower() in FORMATS and not path.name.startswith(".") and path.is_file()
    )


def folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def listed(names: list[str]) -> str:
    """Return names as a list for a sentence, only the first few of many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def find(folder: Path) -> Found:
    """Return what a folder holds by its layout; nothing if it has none."""
    scenes = _scene_folders(folder)
    if len(scenes.pairs) == len(scenes.guessed) or _are_roles(scenes):
        by_role = _role_folders(folder)
        if by_role.pairs or (by_role.failures and len(scenes.pairs) == len(scenes.guessed)):
            return by_role
        if not scenes.pairs:
            flat = _flat(folder)
            if flat.pairs:
                return flat
    return scenes


def _are_roles(scenes: Found) -> bool:
    """Return whether folders that each hold a pair are really two roles: A/car_a, A/car_b; B/car_a, B/car_b.

    If so, the folders are named like roles, and their pictures are not named like the folders.
    """
    for family in roles.FAMILIES:
        if {roles.of_folder(pair.name, family) for pair in scenes.pairs} == {0, 1} and len(scenes.pairs) == 2:
            keys = [(roles.split(frame.stem, own), pair.name) for pair in scenes.pairs for frame in pair.frames
                    for own in roles.FAMILIES]  # fmt: skip
            return all(parts is None or _rank(parts[0], name) == 4 for parts, name in keys)
    return False


def find_below(folder: Path, depth: int = DEPTH, *, guesses: bool = False) -> list[tuple[Path, Found]]:
    """Return the folders below that have a layout, from the first depth with any.

    If one is named as the sources' folder, only that is returned. Guessed layouts count only with ``guesses``.
    """
    own = folders(folder)
    below = [(path, find(path)) for path in own]
    below = [(path, found) for path, found in below if found.pairs and (guesses or not found.guessed)]
    if not below and depth > 1:
        below = [entry for path in own for entry in find_below(path, depth - 1, guesses=guesses)]
    sources = [entry for entry in below if entry[0].name.casefold() in SOURCE_FOLDERS]
    return sources if len(sources) == 1 else below


# One folder per scene


def _scene_folders(folder: Path) -> Found:
    found = Found()
    unused: list[str] = []
    for scene in folders(folder):
        own = pictures(scene)
        if not own:
            continue
        pair, reason, guess = _scene(scene, own)
        if (guess or pair is None) and scene.name.casefold() in NO_SCENES:
            found.remarks.append(f"{scene.name}/ was left out: it seems to hold no scene.")
            continue
        if pair is None:
            found.failures.append(Failure(scene.name, "", reason))
            continue
        found.pairs.append(pair)
        if guess:
            found.guessed.append(scene.name)
        unused += [f"{scene.name}/{path.name}" for path in own if path not in pair.frames]
    if unused:
        number = counted(len(unused), "picture")
        found.remarks.append(
            f"Not used, because their names name no frame of their folder: {number}, {listed(unused)}."
        )
    if found.guessed:
        found.remarks.append(
            f"Guessed: the pictures of {listed(found.guessed)} name no role and are frames in the order of their names."
        )
    return found


def _scene(folder: Path, own: list[Path]) -> tuple[Pair | None, str, bool]:
    """Return the pair of a scene's folder, or why there is none, and whether it was guessed."""
    choices = [(family, *_members(folder.name, own, family)) for family in roles.FAMILIES]
    family, members, doubles = max(choices, key=lambda c: sum(role in c[1] or role in c[2] for role in (0, 1)))
    if 0 in members and 1 in members and not doubles:
        frames = [members[role] for role in sorted(members)]
        return Pair(folder.name, frames[0], frames[1], tuple(frames[2:])), "", False
    names = [path.name for path in own]
    if {0, 1} & (members.keys() | doubles.keys()):
        for role in sorted({0, 1, *doubles}):
            what = f"{folder.name}_{family.roles[role][0]}"
            if role in doubles:
                return None, f"{what} exists {len(doubles[role])} times: {listed(doubles[role])}", False
            if role not in members:
                return None, f"{what} is missing, found {listed(names)}", False
    numbered = {NUMBER.sub("", path.stem).casefold() for path in own}
    if len(own) == 2 or (len(own) > 2 and len(numbered) == 1 and all(NUMBER.search(path.stem) for path in own)):
        frames = sorted(own, key=_natural)
        return Pair(folder.name, frames[0], frames[1], tuple(frames[2:])), "", True
    expected = " or ".join(f"{folder.name}_{f.names()[0]}, {folder.name}_{f.names()[1]}" for f in roles.FAMILIES[:3])
    return None, f"found {listed(names)}; expected {expected}", False


def _natural(path: Path) -> list[tuple[bool, int | str]]:
    """Return a sort key that puts 2 before 10."""
    return [
        (not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", path.stem) if part
    ]


def _members(scene: str, own: list[Path], family: roles.Family) -> tuple[dict[int, Path], dict[int, list[str]]]:
    """Return the picture of each role, and the names if several fit equally well.

    A picture named like its folder comes before one with a misspelt name, and that before one with the role alone.
    """
    ranked: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for path in own:
        parts = roles.split(path.stem, family)
        if parts is not None:
            ranked[parts[1]].append((_rank(parts[0], scene), path))
    best = min((rank for entries in ranked.values() for rank, _ in entries), default=0)
    members, doubles = {}, {}
    for role, entries in ranked.items():
        first = min(rank for rank, _ in entries)
        if role > 1 and first > max(best, 2):
            continue  # further frames must be named like the pair: D.png beside NAME_A and NAME_B is not one
        paths = [path for rank, path in entries if rank == first]
        if len(paths) == 1:
            members[role] = paths[0]
        else:
            doubles[role] = [path.name for path in paths]
    return members, doubles


def _rank(key: str, scene: str) -> int:
    if key == scene:
        return 0
    key, scene = roles.folded(key), roles.folded(scene)
    if key == scene:
        return 1
    if difflib.SequenceMatcher(None, key, scene).ratio() >= CLOSE:
        return 2
    return 4 if key else 3


# One folder per role


def _role_folders(folder: Path) -> Found:
    for family in roles.FAMILIES:
        holders: dict[int, list[Path]] = defaultdict(list)
        for path in folders(folder):
            role = roles.of_folder(path.name, family)
            if role is not None:
                holders[role].append(path)
        if 0 in holders and 1 in holders:
            return _of_holders(family, holders)
    return Found()


def _of_holders(family: roles.Family, holders: dict[int, list[Path]]) -> Found:
    found = Found()
    chosen = {role: paths[0] for role, paths in holders.items()}
    for role, paths in holders.items():
        if len(paths) > 1:
            others = {other: entries for other, entries in holders.items() if other != role}
            best = _fitting(paths, [path for entries in others.values() for path in entries], family)
            names = [path.name for path in paths]
            if best is None:
                text = f"found {listed(names)} for {family.roles[role][0]}; expected one folder"
                found.failures.append(Failure(paths[0].parent.name, "", text))
                return found
            chosen[role] = best
            found.remarks.append(f"Of {listed(names)}, {best.name} was taken: its pictures have the others' sizes.")
    files = _by_keys(family, chosen, found)
    keys = {key: None for role in sorted(files) for key in files[role]}
    label_of = {key: next(files[role][key][0] for role in sorted(files) if key in files[role]) for key in keys}
    frequent = Counter(roles.folded(Path(label).name) for label in label_of.values())
    for key in keys:
        own = {role: entries[key] for role, entries in files.items() if key in entries}
        label = label_of[key]
        name = Path(label).name if frequent[roles.folded(Path(label).name)] == 1 else label.replace("/", "_")
        missing = [f"{chosen[role].name}/" for role in (0, 1) if role not in own]
        if missing:
            there = next(iter(own.values()))[1]
            text = f"{there.parent.name}/{there.name} has no picture of that name in {missing[0]}"
            found.failures.append(Failure(name, "", text))
            continue
        frames = [own[role][1] for role in sorted(own)]
        found.pairs.append(Pair(name, frames[0], frames[1], tuple(frames[2:])))
    found.pairs.sort(key=lambda pair: pair.name)
    if not found.pairs:
        _pair_by_order(found, chosen, files)
    return found


def _pair_by_order(found: Found, chosen: dict[int, Path], files: dict[int, dict[str, tuple[str, Path]]]) -> None:
    """Pair pictures without a common name if one choice is left: one in each folder, or only numbers differ."""
    own = {role: sorted((path for _, path in files[role].values()), key=_natural) for role in sorted(files)}
    patterns = {re.sub(r"\d+", "", roles.folded(path.stem)) for paths in own.values() for path in paths}
    count = len(own[0])
    if not count or any(len(paths) != count for paths in own.values()) or (count > 1 and len(patterns) > 1):
        return
    for frames in zip(*own.values(), strict=True):
        found.pairs.append(Pair(frames[0].stem, frames[0], frames[1], frames[2:]))
    found.failures.clear()
    listed_folders = " and ".join(f"{chosen[role].name}/" for role in own)
    found.remarks.append(f"Guessed: the pictures of {listed_folders} share no name and are paired in order.")


def _by_keys(family: roles.Family, chosen: dict[int, Path], found: Found) -> dict[int, dict[str, tuple[str, Path]]]:
    """Return the pictures of each role by the name they share; names that occur in both folders stay whole."""
    stems = [{_whole(path, chosen[role]) for path in pictures(chosen[role], deep=True)} for role in (0, 1)]
    return {role: _by_key(path, family, found, stems[0] & stems[1]) for role, path in chosen.items()}


def _whole(path: Path, folder: Path) -> str:
    return roles.folded((path.parent.relative_to(folder) / path.stem).as_posix())


def _by_key(
    folder: Path, family: roles.Family, found: Found, whole: frozenset[str] | set[str] = frozenset()
) -> dict[str, tuple[str, Path]]:
    """Return the pictures of a role by what they share with the other roles': path and name without the role."""
    entries: dict[str, tuple[str, Path]] = {}
    for path in pictures(folder, deep=True):
        parts = None if _whole(path, folder) in whole else roles.split(path.stem, family)
        stem = parts[0] if parts and parts[0] else path.stem
        label = (path.parent.relative_to(folder) / stem).as_posix()
        original = (path.parent.relative_to(folder) / roles.without_copy_mark(stem)).as_posix()
        key = roles.folded(label)
        if original != label and (folder / f"{original}{path.suffix}").exists():
            found.remarks.append(f"{folder.name}/{path.name} was left out as a copy.")
        elif key in entries:
            found.remarks.append(f"{folder.name}/{path.name} was left out: {entries[key][1].name} is used.")
        else:
            entries[key] = label, path
    return entries


def _fitting(paths: list[Path], others: list[Path], family: roles.Family) -> Path | None:
    """Return the only folder whose pictures match those of the other role's folders in name and size."""
    from PIL import Image

    def size(path: Path) -> tuple[int, int]:
        with Image.open(path) as picture:
            return picture.size

    sizes: set[tuple[str, tuple[int, int]]] = set()
    for folder in others:
        sizes |= {(key, size(path)) for key, (_, path) in list(_by_key(folder, family, Found()).items())[:8]}
    fitting = []
    for folder in paths:
        own = _by_key(folder, family, Found())
        if any(key in own and size(own[key][1]) == wanted for key, wanted in sizes):
            fitting.append(folder)
    return fitting[0] if len(fitting) == 1 else None


# All in one folder


def _flat(folder: Path) -> Found:
    best = Found()
    own = pictures(folder)
    for family in roles.FAMILIES:
        found = _flat_of(family, own)
        if len(found.pairs) > len(best.pairs):
            best = found
    return best if best.pairs else _numbered(folder.resolve().name, own)


def _flat_of(family: roles.Family, own: list[Path]) -> Found:
    scenes: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
    labels: dict[str, str] = {}
    for path in own:
        parts = roles.split(path.stem, family)
        if parts and parts[0]:
            key = roles.folded(parts[0])
            scenes[key][parts[1]].append(path)
            labels.setdefault(key, parts[0])
    found = Found()
    used: set[Path] = set()
    for key, members in scenes.items():
        if all(len(members.get(role, ())) == 1 for role in (0, 1)):
            frames = [members[role][0] for role in sorted(members)]
            found.pairs.append(Pair(labels[key], frames[0], frames[1], tuple(frames[2:])))
            used |= set(frames)
        elif 0 in members or 1 in members:
            names = [path.name for paths in members.values() for path in paths]
            wanted = " and ".join(f"{labels[key]}_{name}" for name in family.names())
            found.failures.append(Failure(labels[key], "", f"found {listed(names)}; expected {wanted}"))
    unused = [path.name for path in own if path not in used]
    if unused:
        found.remarks.append(f"Not used, because their names name no frame: {listed(unused)}.")
    return found


def _numbered(folder: str, own: list[Path]) -> Found:
    """Return, as a guess, scenes whose pictures differ only in their last number: 1, 2, ... in each."""
    scenes: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in own:
        parts = re.fullmatch(r"(.*?)[ _\-.]?0*(\d{1,3})", path.stem)
        if parts is None or int(parts[2]) in scenes[parts[1]]:
            return Found()
        scenes[parts[1]][int(parts[2])] = path
    found = Found()
    for name, numbered in sorted(scenes.items()):
        count = len(numbered)
        if not 2 <= count <= MOST_NUMBERED or sorted(numbered) not in (list(range(count)), list(range(1, count + 1))):
            return Found()
        frames = [numbered[number] for number in sorted(numbered)]
        found.pairs.append(Pair(name or folder, frames[0], frames[1], tuple(frames[2:])))
        found.guessed.append(name or folder)
    if found.pairs:
        guessed = listed(found.guessed)
        found.remarks.append(f"Guessed: the pictures of {guessed} name no role and are frames by their numbers.")
    return found
