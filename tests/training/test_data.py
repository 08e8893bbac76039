"""Training data: what is found, what a sample holds, and that chance is a function of seed, epoch and number."""

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ffmef.data import (
    DeviceBatches,
    EpochBatches,
    Mixture,
    PictureScenes,
    SyntheticBrackets,
    SyntheticStacks,
    TrainingSet,
    device,
    find_brackets,
    find_pairs,
    find_photographs,
    find_scenes,
    read_table,
)
from ffmef.data.crops import draw_window
from ffmef.data.synthetic import _view
from ffmef.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples"


def picture(level, size=(40, 56), seed=0):
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 60, (*size, 3))
    return np.clip(texture + level, 0, 255).astype(np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pairs(tmp_path):
    """Three scenes, B darker than A in the second."""
    for number, (a, b) in enumerate([(10, 180), (150, 20), (30, 160)]):
        write(tmp_path / f"scene{number}" / f"scene{number}_A.png", picture(a, seed=number))
        write(tmp_path / f"scene{number}" / f"scene{number}_B.png", picture(b, seed=number))
    return tmp_path


def test_pair_folders_of_both_kinds(pairs):
    write(pairs / "plain" / "A.JPG", picture(0))
    write(pairs / "plain" / "B.bmp", picture(100))
    write(pairs / "alone" / "A.png", picture(0))
    write(pairs / "other" / "x_A.png", picture(0))
    write(pairs / "other" / "x_B.png", picture(0))
    found = find_pairs(pairs)
    assert list(found) == ["plain", "scene0", "scene1", "scene2"]
    assert [path.name for path in found["plain"]] == ["A.JPG", "B.bmp"]
    assert [path.name for path in found["scene1"]] == ["scene1_A.png", "scene1_B.png"]


def test_brackets_in_the_order_of_numbers(tmp_path):
    for number in (10, 2, 1):
        write(tmp_path / "tower" / f"E{number}.png", picture(number))
    write(tmp_path / "single" / "E1.png", picture(1))
    assert {name: [p.name for p in paths] for name, paths in find_brackets(tmp_path).items()} == {
        "tower": ["E1.png", "E2.png", "E10.png"]
    }
    assert list(find_scenes(tmp_path)) == ["tower"]


def test_table_of_pairs(pairs):
    table = pairs / "pairs.csv"
    table.write_text("scene0/scene0_A.png, scene0/scene0_B.png\n\nscene2/scene2_A.png,scene2/scene2_B.png\n")
    assert [[p.name for p in paths] for paths in find_scenes(table).values()] == [
        ["scene0_A.png", "scene0_B.png"],
        ["scene2_A.png", "scene2_B.png"],
    ]
    table.write_text("scene0/scene0_A.png\n")
    with pytest.raises(InputError, match="line 1 must name two or more pictures, got 1"):
        read_table(table)


@pytest.mark.parametrize("search", [find_pairs, find_brackets, find_photographs, find_scenes])
def test_nothing_found_is_an_error(search, tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        search(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        search(tmp_path / "nowhere")


def test_darker_picture_first(pairs):
    scenes = PictureScenes(find_pairs(pairs))
    rng = np.random.default_rng(0)
    for index in range(3):
        dark, bright = scenes.sample(index, 16, "whole", rng).mean((1, 2, 3))
        assert dark < bright
    given = PictureScenes(find_pairs(pairs), order="given").sample(1, 16, "whole", rng).mean((1, 2, 3))
    assert given[0] > given[1]
    mixed = PictureScenes(find_pairs(pairs), order="random")
    firsts = {bool(np.diff(mixed.sample(0, 16, "whole", rng).mean((1, 2, 3)))[0] > 0) for _ in range(20)}
    assert firsts == {True, False}


def test_pictures_of_a_sample_show_the_same_part(pairs):
    scenes = PictureScenes(find_pairs(pairs))
    sample = scenes.sample(0, 16, "mixed", np.random.default_rng(3)).astype(int)
    assert np.ptp(sample[1] - sample[0]) <= 2 and sample.std() > 0  # the same texture, 170 levels apart


def test_damaged_scenes_are_reported_once_and_left_out(pairs, caplog):
    (pairs / "scene1" / "scene1_B.png").write_bytes(b"\x89PNG nonsense")
    write(pairs / "scene2" / "scene2_B.png", picture(90, size=(40, 40)))
    with caplog.at_level(logging.WARNING):
        scenes = PictureScenes(find_pairs(pairs))
    assert scenes.names == ["scene0"]
    assert sorted(scenes.skipped) == ["scene1", "scene2"]
    assert "must be 56 x 40 like the first picture of its scene, got 40 x 40" in scenes.skipped["scene2"]
    assert len([record for record in caplog.records if "left out" in record.message]) == 2


def test_bracket_gives_pairs_apart(tmp_path):
    levels = [0, 30, 60, 90, 120, 190]
    for number, level in enumerate(levels):
        write(tmp_path / "tower" / f"E{number}.png", picture(level))
    scenes = PictureScenes(find_brackets(tmp_path), gap=50)
    rng = np.random.default_rng(0)
    gaps = {round(float(np.diff(scenes.sample(0, 16, "whole", rng).mean((1, 2, 3)))[0])) for _ in range(60)}
    assert min(gaps) >= 50 and len(gaps) > 3
    dark, bright = scenes.whole(0).mean((1, 2, 3))
    assert dark == pytest.approx(29.5, abs=1) and bright > 200
    three = PictureScenes(find_brackets(tmp_path), count=3, gap=50).sample(0, 16, "whole", rng).mean((1, 2, 3))
    assert len(three) == 3 and (np.diff(three) >= 50).all()
    impossible = PictureScenes(find_brackets(tmp_path), gap=300).sample(0, 16, "whole", rng).mean((1, 2, 3))
    assert impossible == pytest.approx([dark, bright], abs=2)


def test_larger_counts_are_half_of_the_samples(tmp_path, photographs):
    for number, level in enumerate([0, 30, 60, 90, 120, 190]):
        write(tmp_path / "tower" / f"E{number}.png", picture(level))
    for number, level in enumerate([10, 90, 190]):
        write(tmp_path / "yard" / f"E{number}.png", picture(level))
    real = PictureScenes(find_brackets(tmp_path), largest_count=5, gap=10)
    synthetic = SyntheticBrackets(photographs, largest_count=4)
    for scenes, index, most in ((real, 0, 5), (real, 1, 3), (synthetic, 0, 4)):
        lengths = [len(scenes.sample(index, 16, "whole", np.random.default_rng(seed))) for seed in range(80)]
        assert set(lengths) == set(range(2, most + 1)) and 25 < lengths.count(2) < 55
    plain, same = (SyntheticBrackets(photographs, largest_count=most) for most in (0, 2))
    samples = [scenes.sample(0, 16, "mixed", np.random.default_rng(1)) for scenes in (plain, same)]
    assert (samples[0] == samples[1]).all()  # seeds of pairs mean what they did


def test_jitter_exposes_further(pairs):
    plain = PictureScenes(find_pairs(pairs)).sample(0, 16, "whole", np.random.default_rng(0)).mean((1, 2, 3))
    scenes = PictureScenes(find_pairs(pairs), jitter=1.0)
    seen = np.array([scenes.sample(0, 16, "whole", np.random.default_rng(n)).mean((1, 2, 3)) for n in range(20)])
    assert (seen[:, 0] <= plain[0] + 1).all() and (seen[:, 1] >= plain[1] - 1).all()
    assert seen[:, 0].min() < 0.8 * plain[0] and seen[:, 1].max() > plain[1] + 10
    again = PictureScenes(find_pairs(pairs)).sample(0, 16, "whole", np.random.default_rng(0)).mean((1, 2, 3))
    assert (again == plain).all()


@pytest.mark.parametrize("recipe", ["whole", "release", "mixed"])
def test_windows_stay_inside(recipe):
    rng = np.random.default_rng(0)
    for height, width in ((40, 300), (90, 70), (1, 5)):
        for _ in range(100):
            top, left, h, w = draw_window(height, width, 32, recipe, rng)
            assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h and w
            if recipe == "whole":
                assert (h, w) == (height, width)
            if recipe == "release":
                assert h >= 0.5 * height - 1 and w >= 0.5 * width - 1
    with pytest.raises(ValueError, match="recipe must be one of .*, got 'centre'"):
        draw_window(9, 9, 4, "centre", rng)


def photograph(size=96):
    rows, columns = np.mgrid[0:size, 0:size] / size
    planes = [rows, columns, 0.5 + 0.5 * np.sin(20 * rows * columns)]
    return (np.stack(planes, -1) * 255).astype(np.uint8)


def panorama():
    rows, columns = np.mgrid[0:64, 0:128]
    light = 0.05 + np.exp2(-((rows - 20) ** 2 + (columns - 70) ** 2) / 40) * 500
    return np.repeat(light[..., None], 3, -1).astype(np.float32)


@pytest.fixture
def photographs(tmp_path):
    write(tmp_path / "a.png", photograph())
    np.save(tmp_path / "sun.npy", panorama())
    return tmp_path


def test_synthetic_brackets(photographs):
    scenes = SyntheticBrackets(photographs)
    assert sorted(scenes.names) == ["a.png", "sun.npy"]
    for index in range(2):
        for seed in range(8):
            sample = scenes.sample(index, 32, "mixed", np.random.default_rng(seed))
            assert sample.shape == (2, 32, 32, 3) and sample.dtype == np.uint8
            dark, bright = sample.mean((1, 2, 3))
            assert dark < bright
            again = scenes.sample(index, 32, "mixed", np.random.default_rng(seed))
            assert (again == sample).all()
    # The dark picture saves highlights that the bright one clips.
    sample = np.stack([scenes.sample(1, 32, "whole", np.random.default_rng(s)) for s in range(20)])
    assert (sample[:, 1] == 255).mean() > 4 * (sample[:, 0] == 255).mean()
    bracket = SyntheticBrackets(photographs, count=4).sample(0, 32, "whole", np.random.default_rng(1))
    assert (np.diff(bracket.mean((1, 2, 3))) > 0).all()


def test_radiance_maps_from_files(tmp_path):
    cv2 = pytest.importorskip("cv2")
    light = np.random.default_rng(0).random((20, 30, 3), np.float32) * [4, 2, 1]
    cv2.imwrite(str(tmp_path / "a.hdr"), light[..., ::-1].astype(np.float32))
    np.save(tmp_path / "b.npy", light)
    (tmp_path / "c.exr").write_bytes(b"no radiance")
    (tmp_path / "d.hdr").write_bytes(b"no radiance")
    np.save(tmp_path / "e.npy", np.full((4, 4, 3), np.nan))
    scenes = SyntheticBrackets(tmp_path)
    assert scenes.names == ["a.hdr", "b.npy"] and sorted(scenes.skipped) == ["c.exr", "d.hdr", "e.npy"]
    one, two = scenes.light
    np.testing.assert_allclose(one, two, rtol=0.05, atol=0.05)


def test_synthetic_jitter_widens_brackets(photographs):
    def levels(jitter):
        scenes = SyntheticBrackets(photographs, windows=0.0, jitter=jitter)
        samples = [scenes.sample(0, 32, "whole", np.random.default_rng(seed)) for seed in range(40)]
        return np.stack(samples).mean((0, 2, 3, 4))

    (dark, bright), (darker, brighter) = levels(0.0), levels(1.0)
    assert darker < 0.8 * dark and brighter > bright + 10


def test_windows_hold_a_brighter_scene(photographs):
    plain = SyntheticBrackets(photographs, windows=0.0)
    framed = SyntheticBrackets(photographs, windows=1.0)
    differ = [
        (
            plain.sample(0, 32, "whole", np.random.default_rng(s))
            != framed.sample(0, 32, "whole", np.random.default_rng(s))
        ).any()
        for s in range(4)
    ]
    assert all(differ)


def test_same_index_gives_the_same_sample(pairs):
    options = {"size": 16, "recipe": "mixed", "turns": True}
    one, two = (TrainingSet(PictureScenes(find_pairs(pairs)), **options, seed=5) for _ in range(2))
    for place in ((0, 0), (0, 1), (3, 2)):
        assert torch.equal(one[place], two[place])
    assert not torch.equal(one[0, 0], one[1, 0])
    assert not torch.equal(one[0, 0], TrainingSet(one.scenes, **options, seed=6)[0, 0])
    assert one[0, 0].shape == (2, 3, 16, 16) and one[0, 0].dtype == torch.uint8


def test_samples_of_one_pixel_are_flipped(pairs):
    dataset = TrainingSet(PictureScenes(find_pairs(pairs)), size=1, turns=True)
    assert {dataset[epoch, 0].shape for epoch in range(8)} == {(2, 3, 1, 1)}


def test_flips_turn_all_pictures_of_a_sample_alike(pairs):
    scenes = PictureScenes(find_pairs(pairs))
    still = TrainingSet(scenes, size=16, flips=False)[0, 0]
    flipping = TrainingSet(scenes, size=16)
    found = set()
    for epoch in range(24):
        sample = flipping[epoch, 0]
        for axes in ((), (2,), (3,), (2, 3)):
            if torch.equal(sample, still.flip(axes)):
                found.add(axes)
                break
        else:
            raise AssertionError("a sample that is no flip of the scene")
    assert found == {(), (2,), (3,), (2, 3)}


def test_batches_are_shared_without_loss(pairs):
    dataset = TrainingSet(PictureScenes(find_pairs(pairs)), size=16, samples_per_epoch=11, seed=1)
    whole = EpochBatches(dataset, 4)
    parts = [EpochBatches(dataset, 4, rank=rank, world_size=2) for rank in (0, 1)]
    for sampler in (whole, *parts):
        sampler.seek(3)
    together = [a + b for a, b in zip(*parts)]
    assert list(whole) == together and len(whole) == len(together) == 2
    assert len({place for batch in whole for place in batch}) == 8
    assert whole.at(3, 1) == together[1]
    whole.seek(3, 1)
    assert list(whole) == together[1:]
    whole.seek(4)
    assert list(whole) != together


def test_too_little_data_is_an_error_at_the_start(pairs):
    dataset = TrainingSet(PictureScenes(find_pairs(pairs)), size=16)
    with pytest.raises(InputError, match="3 samples an epoch, fewer than one batch of 4"):
        EpochBatches(dataset, 4)
    with pytest.raises(InputError, match="multiple of 2 processes, got 3"):
        EpochBatches(dataset, 3, world_size=2)


def test_mixture_holds_all_parts(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write(folder / "one.png", photograph())
    parts = Mixture([PictureScenes(find_pairs(pairs)), SyntheticBrackets(folder)])
    assert parts.names == ["scene0", "scene1", "scene2", "one.png"] and len(parts) == 4
    assert parts.sample(3, 16, "whole", np.random.default_rng(0)).shape == (2, 16, 16, 3)
    assert TrainingSet(parts, size=16, samples_per_epoch=9).name((0, 7)) == "one.png"


# Focus stacks


def photographs_in(folder, count=2, side=96):
    rng = np.random.default_rng(4)
    for k in range(count):
        coarse = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def test_stacks_hold_their_truth_and_some_frame_is_sharp_everywhere(tmp_path):
    stacks = SyntheticStacks(photographs_in(tmp_path), largest_count=6)
    counts = set()
    for seed in range(12):
        sample = stacks.sample(seed % 2, 64, "whole", np.random.default_rng(seed))
        assert sample.dtype == np.uint8 and sample.shape[1:] == (64, 64, 3)
        np.testing.assert_array_equal(sample, stacks.sample(seed % 2, 64, "whole", np.random.default_rng(seed)))
        counts.add(len(sample) - 1)
        frames, truth = sample[:-1].astype(float), sample[-1].astype(float)
        errors = np.abs(frames - truth).mean(3)
        assert errors.min(0).mean() < 0.8 * errors.mean() + 1  # frames differ in where they are sharp
        assert np.abs(frames.mean((1, 2, 3)) - truth.mean()).max() < 25  # defocus keeps light
    assert min(counts) == 2 and max(counts) > 3
    bare = SyntheticStacks(tmp_path, truth=False).sample(0, 64, "whole", np.random.default_rng(1))
    assert len(bare) == 2


@pytest.mark.parametrize("blur", ["_disc", "_gaussian"])
def test_defocus_keeps_light_and_grows(blur):
    from ffmef.data import stacks

    point = np.zeros((65, 65, 1), np.float32)
    point[32, 32] = 1
    spread = []
    for radius in (0.1, 2.0, 5.0):
        seen = getattr(stacks, blur)(point, radius).reshape(65, 65)
        assert abs(seen.sum() - 1) < 1e-4
        y, x = np.mgrid[-32:33, -32:33]
        spread.append(float((seen * (y * y + x * x)).sum()))
    assert spread[0] == 0
    # Of a disc half the squared radius, of a Gaussian of deviation r / 2 the same.
    np.testing.assert_allclose(spread[1:], [2.0, 12.5], rtol=0.2)


def test_a_near_layer_is_blurred_with_its_edge():
    """A sharp background must not change where a blurred shape covers nothing, and mix where it covers half."""
    from ffmef.data import stacks

    back = np.dstack([np.full((32, 64, 3), 0.25, np.float32), np.ones((32, 64), np.float32)])
    cover = (np.arange(64) < 32).astype(np.float32)[None].repeat(32, 0)
    front = np.dstack([cover] * 3 + [cover])
    seen = stacks._rendered([(back, 0.0), (front, 1.0)], 0.0, 4.0, stacks._disc)
    np.testing.assert_allclose(seen[:, :26], 1, atol=1e-5)
    np.testing.assert_allclose(seen[:, 38:], 0.25, atol=1e-5)
    np.testing.assert_allclose(seen[16, 31] + seen[16, 32], 1.25, atol=1e-4)
    slanted = stacks._slanted(back, np.linspace(0, 15, 64, dtype=np.float32)[None].repeat(32, 0), stacks._disc)
    np.testing.assert_allclose(slanted, back, atol=1e-5)


def test_a_lamp_hides_what_the_infrared_shows(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "one").mkdir()
    infrared = rng.integers(60, 200, (80, 80, 3), np.uint8)
    infrared[:, :40] = 100  # nothing to hide
    Image.fromarray(infrared).save(tmp_path / "one" / "one_B.png")
    Image.fromarray(np.full((80, 80, 3), 90, np.uint8)).save(tmp_path / "one" / "one_A.png")
    scenes = {name: paths[::-1] for name, paths in find_scenes(tmp_path).items()}
    dazzled = PictureScenes(scenes, order="given", glare=1.0)
    plain = PictureScenes(scenes, order="given")
    right = 0
    for seed in range(12):
        sample, other = (p.sample(0, 64, "whole", np.random.default_rng(seed)) for p in (dazzled, plain))
        np.testing.assert_array_equal(sample[0], other[0])  # the infrared
        assert (sample[1] >= other[1]).all() and (sample[1] == 255).all(2).sum() > 20
        columns = np.nonzero((sample[1] == 255).all(2))[1]
        right += columns.mean() > 32
    assert right > 9


def test_brackets_made_on_the_device(tmp_path):
    """Of the same kind as those that processes make: sizes, counts, order, and how bright they are on average."""
    scenes = SyntheticBrackets(EXAMPLES, count=2, largest_count=4, windows=0.5, jitter=0.3, longest_side=300)
    dataset = TrainingSet(Mixture([scenes]), size=64, recipe="mixed", samples_per_epoch=400, turns=True, seed=3)
    made = DeviceBatches(dataset, EpochBatches(dataset, 4), torch.device("cpu"))
    levels = {}
    for batch in itertools.islice(made, 60):
        assert batch.dtype == torch.uint8 and batch.shape[0] == 4 and batch.shape[2:] == (3, 64, 64)
        means = batch.float().mean((2, 3, 4))
        assert (means.diff(dim=1) > -1).all()  # the darker first
        levels.setdefault(batch.shape[1], []).append(means)
    assert set(levels) == {2, 3, 4}
    usual = [dataset[0, number].float().mean((1, 2, 3)) for number in range(240)]
    for end in (0, -1):
        ours = torch.cat([means[:, end] for part in levels.values() for means in part]).mean()
        assert ours == pytest.approx(torch.stack([means[end] for means in usual]).mean(), abs=15)
    places = [(0, 5), (0, 9)]
    assert torch.equal(made.make(places), made.make(places))
    assert not torch.equal(made.make(places), made.make([(1, 5), (1, 9)]))


def test_view_of_a_panorama_on_the_device():
    """Columns show the longitude, rows the latitude that a camera turned by the drawn yaw and pitch sees there."""
    height = 90
    rows, columns = np.mgrid[0:height, 0 : 2 * height].astype(np.float32)
    panorama = np.stack([rows, np.abs(columns - height), np.ones_like(rows)], -1)
    wanted = _view(panorama, 48, np.random.default_rng(2))
    found = device._view(torch.from_numpy(panorama.transpose(2, 0, 1).copy()), 48, np.random.default_rng(2))
    np.testing.assert_allclose(found.numpy().transpose(1, 2, 0), wanted, atol=0.1)
