"""Measures alignment of synthetic hand-held brackets against other programs: the error left in pixels, and the time.

Each case renders a bracket of one photograph: known movements of the camera, exposure steps in linear light, photon and
read noise, 8 bit. What a program returns is compared, patch by patch, with the same exposure rendered unmoved, so all
are measured alike. ``align_image_stack`` is left out if it is not installed.

    python scripts/measure_align.py PICTURE... [--height 1000] [--stops 2 4] [--turn 0 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from ffmef import align
from ffmef.imaging.exr import decode_display, encode_display
from ffmef.imaging.io import read_picture, to_eight_bit

NOISE, READ_NOISE = 0.004, 0.001


def hand(width: int, height: int, turn: float, random: np.random.Generator) -> np.ndarray:
    """Return a movement of up to 1.5 % of the width, with a turn of up to so many degrees and 0.5 % of scale."""
    angle = np.radians(random.uniform(-turn, turn))
    scale = 1 + random.uniform(-0.005, 0.005) * (turn > 0)
    centre, shift = np.array([width, height]) / 2, random.uniform(-0.015, 0.015, 2) * width
    matrix = np.eye(3)
    matrix[:2, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix[:2, 2] = centre + shift - matrix[:2, :2] @ centre
    return matrix


def render(light: np.ndarray, matrix: np.ndarray, stops: float, margin: int, random: np.random.Generator) -> np.ndarray:
    height, width = light.shape[:2]
    moved = cv2.warpPerspective(light, np.linalg.inv(matrix), (width, height), flags=cv2.INTER_CUBIC)
    moved = np.maximum(moved[margin:-margin, margin:-margin], 0) * np.float32(2.0**stops)
    noise = random.standard_normal(moved.shape, np.float32) * np.sqrt(moved * NOISE**2 + READ_NOISE**2)
    return np.rint(encode_display(np.clip(moved + noise, 0, 1)) * 255).astype(np.uint8)


def left_over(result: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the median and the 95 % quantile of how far off patches of the result are, in pixels."""
    planes = [align._luminance(picture) for picture in (result, truth)]
    views = [align._View(plane) for plane in planes]
    spots = align._spots(views[0].small, views[1].small, np.eye(3))
    spots = np.rint((spots + 0.5) / views[0].factor - 0.5)
    here, there = align._match(*planes, np.eye(3), spots, 15)
    distances = np.linalg.norm(here - there, axis=1)
    return (float(np.median(distances)), float(np.percentile(distances, 95))) if len(distances) else (np.nan, np.nan)


def cpu() -> float:
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in use)


def by_ffmef(frames: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    found = align.register(frames, 1)
    size = frames[0].shape[1::-1]
    moved = [cv2.warpPerspective(f, a.matrix, size, flags=cv2.INTER_CUBIC) for f, a in zip(frames, found, strict=True)]
    return moved, 1


def by_mtb(frames: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    moved = [np.zeros_like(frame) for frame in frames]
    cv2.createAlignMTB(max_bits=8).process(frames, moved)
    return moved, len(frames) // 2


def by_align_image_stack(frames: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for index, frame in enumerate(frames):
            names.append(os.path.join(folder, f"f{index}.tif"))
            cv2.imwrite(names[-1], frame[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, 1])
        command = ["align_image_stack", "-m", "--use-given-order", "-a", os.path.join(folder, "o"), *names]
        done = subprocess.run(command, capture_output=True, text=True)
        results = sorted(Path(folder).glob("o*.tif"))
        if done.returncode or len(results) != len(frames):
            raise RuntimeError("no result")
        return [cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].copy() for path in results], 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--stops", type=float, nargs="+", default=[2, 4])
    parser.add_argument("--turn", type=float, nargs="+", default=[0, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    cv2.setNumThreads(args.threads)
    programs = {"ffmef --align": by_ffmef, "AlignMTB": by_mtb}
    if shutil.which("align_image_stack"):
        programs["align_image_stack -m"] = by_align_image_stack
    print("| steps, EV | turn up to | program | median, px | 95 %, px | failed | CPU s a bracket | wall s |")
    print("|---|---|---|---|---|---|---|---|")
    for stops in args.stops:
        for turn in args.turn:
            rows = {name: [] for name in programs}
            failed = dict.fromkeys(programs, 0)
            for seed, path in enumerate(args.pictures):
                case(path, args.height, stops, turn, seed, programs, rows, failed)
            for name, values in rows.items():
                middle, high, busy, wall = np.nanmean(values, 0) if values else [np.nan] * 4
                count = f"{failed[name]} of {len(args.pictures)}"
                figures = f"{middle:.2f} | {high:.2f} | {count} | {busy:.1f} | {wall:.1f}"
                print(f"| {stops:g} | {turn:g}° | {name} | {figures} |", flush=True)


def case(path, height: int, stops: float, turn: float, seed: int, programs, rows, failed) -> None:
    random = np.random.default_rng(seed)
    picture = to_eight_bit(read_picture(path).pixels)
    scale = height * 1.12 / picture.shape[0]
    picture = cv2.resize(
        picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    )
    light = decode_display(picture / np.float32(255)).astype(np.float32)
    margin = round(0.06 * height)
    hands = [hand(light.shape[1], light.shape[0], turn, random) for _ in range(3)]
    steps = (-stops, 0, stops)
    frames = [render(light, m, s, margin, random) for m, s in zip(hands, steps, strict=True)]
    for name, program in programs.items():
        busy, started = cpu(), time.perf_counter()
        try:
            results, reference = program(frames)
        except Exception as error:  # a program that gives up still counts
            print(f"{name}: {path}: {error}", flush=True)
            failed[name] += 1
            continue
        busy, wall = cpu() - busy, time.perf_counter() - started
        values = []
        for index, (result, step) in enumerate(zip(results, steps, strict=True)):
            if index != reference:
                truth = render(light, hands[reference], step, margin, random)
                values.append(left_over(result, truth))
        rows[name].append((*np.nanmean(values, 0), busy, wall))


if __name__ == "__main__":
    main()
