"""The layouts of benchmark folders and tables, and what is said where one is unclear."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from ffmef import cli, metrics
from ffmef.errors import InputError
from ffmef.evaluation import dataset, roles


def save(path, seed=0, size=(12, 16), channels=3, gain=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = (rng.random((*size, channels)) * 250 * gain).astype(np.uint8)
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    return pixels


def files(found):
    return [(pair.name, *(path.name for path in pair.frames)) for pair in found.pairs]


def make(root, *names):
    for name in names:
        save(root / name)
    return dataset.find_pairs(root)


def test_spelling_slips_of_mefb(tmp_path):
    found = make(
        tmp_path,
        "Lighthouse/Lighthouse_B.png", "Lighthouse/Lighthouse_a.png", "Lighthouse/Lighthouse_over.png",
        "Lighthouse/Lighthouse_under - 副本.png",
        "Sky/Sky_B.png", "Sky/sKY_a.png", "Sky/over.png", "Sky/under.png",
        "garage/Garage_A.jpg", "garage/Garage_B.jpg", "garage/garage1.jpg", "garage/garage5.jpg",
        "Farmhouse/DSC03641.png", "Farmhouse/FarmHouse_B.png", "Farmhouse/Farmhouse_A.png",
        "House/B.png", "House/D.png", "House/House_A.png", "House/House_B.png",
        "Tower/Towre_A.png", "Tower/Tower_B.png",
        "Land/1.jpg", "Land/2.jpg", "Land/Land_A.jpg", "Land/Land_B.jpg",
        "Mask/Mask_A.png", "Mask/Mask_B.png", "Mask/mask_over.png", "Mask/mask_under.png",
        "507/507_A.tif", "507/507_B.tif", "507/_MDF0003.tif",
    )  # fmt: skip
    assert files(found) == [
        ("507", "507_A.tif", "507_B.tif"),
        ("Farmhouse", "Farmhouse_A.png", "FarmHouse_B.png"),
        ("House", "House_A.png", "House_B.png"),
        ("Land", "Land_A.jpg", "Land_B.jpg"),
        ("Lighthouse", "Lighthouse_a.png", "Lighthouse_B.png"),
        ("Mask", "Mask_A.png", "Mask_B.png"),
        ("Sky", "sKY_a.png", "Sky_B.png"),
        ("Tower", "Towre_A.png", "Tower_B.png"),
        ("garage", "Garage_A.jpg", "Garage_B.jpg"),
    ]
    assert not found.failures and not found.guessed
    [remark] = found.remarks
    assert "Not used" in remark and "507/_MDF0003.tif" in remark and ": 14 pictures" in remark
    methods, missing = dataset.find_fused([], found.pairs)
    assert not methods and not missing


@pytest.mark.parametrize(
    "visible, infrared",
    [
        ("VI", "IR"), ("vi", "ir"), ("Vis", "Ir"), ("visible", "infrared"), ("crop_LR_visible", "cropinfrared"),
        ("test/vi", "test/ir"), ("input/VI", "input/IR"),
    ],
)  # fmt: skip
def test_a_folder_for_each_role(tmp_path, visible, infrared):
    names = [f"{folder}/{name}.png" for folder in (visible, infrared) for name in ("00004N", "fight", "PeopleShadow")]
    found = make(tmp_path, *names, "Segmentation_labels/00004N.png", "out/fight_theirs.png")
    assert [pair.name for pair in found.pairs] == ["00004N", "PeopleShadow", "fight"]
    assert {pair.a.parent.name for pair in found.pairs} == {visible.rsplit("/")[-1]}
    assert {pair.b.parent.name for pair in found.pairs} == {infrared.rsplit("/")[-1]}
    assert not found.failures and len(found.remarks) == ("/" in visible)


def test_roles_of_llvip_and_case_and_copies(tmp_path):
    found = make(
        tmp_path,
        "visible/train/1.jpg", "visible/test/1.jpg", "infrared/train/1.jpg", "infrared/test/1.jpg",
        "visible/test/peopleshadow.jpg", "infrared/test/peopleShadow.jpg",
        "visible/test/9.jpg", "visible/test/9 - 副本.jpg", "infrared/test/9.png", "infrared/test/lonely.jpg",
    )  # fmt: skip
    assert [pair.name for pair in found.pairs] == ["9", "peopleshadow", "test_1", "train_1"]
    assert [(f.pair, f.reason) for f in found.failures] == [
        ("lonely", "test/lonely.jpg has no picture of that name in visible/")
    ]
    assert found.remarks == ["visible/9 - 副本.jpg was left out as a copy."]


@pytest.mark.parametrize("names, pairs", [
    (["imageA/1_A.png", "imageB/1_B.png", "Fusion/1_F.png"], "1: imageA/1_A.png imageB/1_B.png"),
    (["color/1.png", "tir/1.png"], "1: color/1.png tir/1.png"),
    (["vis_man.png", "ir_man.png"], "man: vis_man.png ir_man.png"),
    (["houseA.png", "houseB.png", "c2A.png", "c2B.png"], "c2: c2A.png c2B.png, house: houseA.png houseB.png"),
    (["A/left.png", "B/right.png"], "left: A/left.png B/right.png"),  # one choice is left
    (["under/I_1.png", "under/I_3.png", "over/I_2.png", "over/I_4.png"],
     "I_1: under/I_1.png over/I_2.png, I_3: under/I_3.png over/I_4.png"),
    (["VI/stro\u0308m.png", "IR/str\u00f6m.png"], "stro\u0308m: VI/stro\u0308m.png IR/str\u00f6m.png"),
    (["A/car_a.png", "A/car_b.png", "B/car_a.png", "B/car_b.png"],  # names that both have stay whole
     "car_a: A/car_a.png B/car_a.png, car_b: A/car_b.png B/car_b.png"),
    (["x/input/a/a_A.png", "x/input/a/a_B.png", "x/output/a_m.png"], "a: x/input/a/a_A.png x/input/a/a_B.png"),
    (["c_01_1.tif", "c_01_2.tif", "c_02_1.tif", "c_02_2.tif"],
     "c_01: c_01_1.tif c_01_2.tif, c_02: c_02_1.tif c_02_2.tif"),
    (["1/1.jpg", "1/2.jpg", "1/3.jpg", "Label/1.jpg", "Label/2.jpg"], "1: 1/1.jpg 1/2.jpg 1/3.jpg"),
])  # fmt: skip
def test_names_of_other_data_sets(tmp_path, names, pairs):
    found = make(tmp_path, *names)
    told = [" ".join([f"{p.name}:", *(str(f.relative_to(tmp_path)) for f in p.frames)]) for p in found.pairs]
    assert ", ".join(told) == pairs and not found.failures


def test_pictures_that_share_no_name_are_not_paired_blindly(tmp_path):
    with pytest.raises(InputError, match="VI/b.png has no picture of that name in IR/"):
        make(tmp_path, "VI/b.png", "VI/c.png", "IR/y.png", "IR/z.png")


def test_two_visible_folders_are_told_apart_by_size(tmp_path):
    save(tmp_path / "crop_HR_visible" / "1.png", size=(24, 32))
    save(tmp_path / "crop_LR_visible" / "1.png")
    found = make(tmp_path, "cropinfrared/1.png")
    assert [pair.a.parent.name for pair in found.pairs] == ["crop_LR_visible"]
    assert "crop_LR_visible was taken" in found.remarks[0]
    save(tmp_path / "crop_HR_visible" / "1.png")
    with pytest.raises(InputError, match="found crop_HR_visible, crop_LR_visible for VI; expected one folder"):
        dataset.find_pairs(tmp_path)


@pytest.mark.parametrize(
    "folders", [("A", "B"), ("under", "over"), ("low", "HIGH"), ("near", "far"), ("source_1", "source_2")]
)
def test_folders_of_exposures_and_foci(tmp_path, folders):
    first, second = folders
    found = make(tmp_path, f"{first}/x.png", f"{second}/x.jpg", f"{first}/y.png", f"{second}/y.png")
    assert [(pair.name, pair.a.parent.name, pair.b.parent.name) for pair in found.pairs] == [
        ("x", first, second), ("y", first, second),
    ]  # fmt: skip


def test_a_third_folder_is_a_third_frame(tmp_path):
    found = make(tmp_path, "under/x.png", "over/x.png", "middle/x.png")
    assert [path.parent.name for path in found.pairs[0].frames] == ["under", "over", "middle"]


def test_all_in_one_folder(tmp_path):
    found = make(
        tmp_path / "lytro", "lytro-01-A.jpg", "lytro-01-B.jpg", "lytro-02-A.jpg", "lytro-02-B.jpg", "readme.png"
    )
    assert files(found) == [
        ("lytro-01", "lytro-01-A.jpg", "lytro-01-B.jpg"), ("lytro-02", "lytro-02-A.jpg", "lytro-02-B.jpg"),
    ]  # fmt: skip
    assert found.remarks == ["Not used, because their names name no frame: readme.png."]
    found = make(tmp_path / "tno", "VIS1.bmp", "IR1.bmp", "IR12.bmp", "VIS12.bmp", "IR3.bmp")
    assert files(found) == [("1", "VIS1.bmp", "IR1.bmp"), ("12", "VIS12.bmp", "IR12.bmp")]
    assert [(f.pair, f.reason) for f in found.failures] == [("3", "found IR3.bmp; expected 3_VI and 3_IR")]


def test_brackets_and_guesses(tmp_path):
    names = ("s/s_A.png", "s/s_B.png", "s/s_C.png", "t/t_1.jpg", "t/t_2.jpg", "t/t_10.jpg", "u/left.png", "u/right.png")
    found = make(tmp_path, *names)
    assert files(found) == [
        ("s", "s_A.png", "s_B.png", "s_C.png"), ("t", "t_1.jpg", "t_2.jpg", "t_10.jpg"), ("u", "left.png", "right.png"),
    ]  # fmt: skip
    assert found.guessed == ["t", "u"] and "Guessed: the pictures of t, u" in found.remarks[-1]
    names = ("s/s_EV-2.png", "s/s_EV0.png", "s/s_EV+1.5.png", "s2/x-1EV.png", "s2/x0EV.png", "s2/x+1EV.png")
    found = make(tmp_path / "exposures", *names, "Label/1.png")
    assert [len(pair.frames) for pair in found.pairs] == [3, 3] and not found.failures
    assert found.remarks[0] == "Label/ was left out: it seems to hold no scene."
    names = ("set/one/a1.png", "set/one/a2.png", "set/one/a3.png", "set/two/left.png", "set/two/right.png")
    found = make(tmp_path / "deep", *names)
    assert found.guessed == ["one", "two"] and [len(pair.frames) for pair in found.pairs] == [3, 2]
    assert found.remarks[0] == "The pairs were found in set/." and "Guessed" in found.remarks[-1]


def test_an_unclear_folder_lists_what_was_found_and_expected(tmp_path):
    save(tmp_path / "scene" / "first.png")
    save(tmp_path / "scene" / "second.png")
    save(tmp_path / "scene" / "third.png")
    with pytest.raises(InputError) as error:
        dataset.find_pairs(tmp_path)
    text = str(error.value)
    assert "NAME/NAME_A.ext" in text and "VI/ and IR/" in text and "which holds scene/" in text
    assert "scene: found first.png, second.png, third.png; expected scene_A, scene_B" in text
    for part in ("train", "test"):
        save(tmp_path / "msrs" / part / "vi" / "1.png")
        save(tmp_path / "msrs" / part / "ir" / "1.png")
    with pytest.raises(InputError, match=r"holds several: test \(1 pair\), train \(1 pair\)"):
        dataset.find_pairs(tmp_path / "msrs")


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return dataset.find_pairs(path)


def test_a_table_names_the_files(tmp_path):
    for name in ("dark.png", "light.png", "more.png", "ours.png"):
        save(tmp_path / "p" / name)
    text = (
        "name;under;over;middle;ours\none;p/dark.png;p/light.png;;p/ours.png\ntwo;p/dark.png;p/light.png;p/more.png;\n"
    )
    found = table(tmp_path / "t.csv", "\ufeff" + text)
    assert files(found) == [("one", "dark.png", "light.png"), ("two", "dark.png", "light.png", "more.png")]
    assert found.fused == {"ours": {"one": tmp_path / "p" / "ours.png"}}
    more = tmp_path / "p" / "more.png"
    text = f'# ours\n\nScene name,Image 1 path,Image 2 path,ISO,ours\n"x, y",p\\dark.png,{more},100,lost.png\n'
    (tmp_path / "unicode.csv").write_bytes(text.encode("utf-16"))
    found = dataset.find_pairs(tmp_path / "unicode.csv")
    assert files(found) == [("x, y", "dark.png", "more.png")]
    assert found.remarks == ["Columns without pictures were not used: ISO."]
    methods, missing = dataset.find_fused([], found.pairs, found.fused)
    assert methods == {"ours": {}} and [f.reason for f in missing] == [f"no file {tmp_path / 'lost.png'}"]
    with pytest.raises(InputError, match="must name each method once, got 'm' twice"):
        table(tmp_path / "twice.csv", "a,b,m,m\np/light.png,p/dark.png,p/ours.png,p/more.png\n")
    found = table(tmp_path / "u.csv", "ir,vi\np/dark.png,p/light.png\nlost.png,p/more.png\n,p/more.png\n")
    assert files(found) == [("light", "light.png", "dark.png")]  # visible first, and its name
    assert [f.reason for f in found.failures] == [f"line 3: no file {tmp_path / 'lost.png'}", "line 4 names no ir"]
    for text in ('"Source A", "Source B" , "Li, 2020"\n"p/dark.png" , "p/light.png", "p/ours.png"\n',
                 'a|b|"Li, 2020"\np/dark.png|p/light.png|p/ours.png\n',
                 'a;b;"Li, 2020"\np/dark.png;p/light.png; p/ours.png\n'):  # fmt: skip
        found = table(tmp_path / "s.csv", text)
        assert files(found) == [("dark", "dark.png", "light.png")]
        assert found.fused == {"Li, 2020": {"dark": tmp_path / "p" / "ours.png"}}
    with pytest.raises(InputError, match=r"must have two columns of sources \(A and B, .*\), found name, first"):
        table(tmp_path / "v.csv", "name,first\n")
    with pytest.raises(InputError, match="must name each pair once, got light again in line 3"):
        table(tmp_path / "w.csv", "a,b\np/light.png,p/dark.png\np/light.png,p/more.png\n")


def test_a_table_is_scored(tmp_path, capsys):
    a, b, fused = (save(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abf"))
    (tmp_path / "t.csv").write_text("name,a,b,theirs\nx,a.png,b.png,f.png\n")
    arguments = ["evaluate", str(tmp_path / "t.csv"), "-o", str(tmp_path / "out"), "--metrics", "en,n-abf"]
    assert cli.main(arguments) == 0
    [row] = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert (row["pair"], row["method"]) == ("x", "theirs")
    assert {key: float(row[key]) for key in ("EN", "N_ABF")} == metrics.compute(a, b, fused, ["EN", "N_ABF"])


@pytest.mark.parametrize("grey_sources", [False, True])
def test_grey_and_colour_meet_on_luma(tmp_path, capsys, grey_sources):
    for seed, name in enumerate(("one", "two")):
        save(tmp_path / "d" / "vi" / f"{name}.png", seed, channels=1 if grey_sources else 3)
        save(tmp_path / "d" / "ir" / f"{name}.png", seed + 5, channels=1)
        save(tmp_path / "f" / f"{name}_theirs.png", seed + 9, channels=3 if grey_sources else 1)
    arguments = ["evaluate", str(tmp_path / "d"), "-o", str(tmp_path / "out"), "--task", "vif"]
    arguments += ["--fused", str(tmp_path / "f"), "--metrics", "EN,QABF"]
    for _ in range(2):  # the second time from the journal
        assert cli.main(arguments) == 0
        said = (
            "Pictures of theirs scored on luma, because fused picture and sources are not both in colour: 2, one, two."
        )
        assert said in capsys.readouterr().out
        assert said in (tmp_path / "out" / "report.html").read_text()
        assert said in json.loads((tmp_path / "out" / "scores.json").read_text())["remarks"]
    read = lambda path: metrics.to_luma(np.asarray(Image.open(tmp_path / path)))  # noqa: E731
    row = next(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    expected = metrics.compute(read("d/vi/one.png"), read("d/ir/one.png"), read("f/one_theirs.png"), ["EN", "QABF"])
    assert {key: float(row[key]) for key in expected} == expected


def test_a_bracket_is_scored_with_all_its_frames(tmp_path, capsys):
    frames = [
        save(tmp_path / "d" / "s" / f"s_{name}.png", 1, (48, 50), gain=g)
        for name, g in zip("ABC", (0.3, 0.6, 1), strict=True)
    ]
    fused = save(tmp_path / "f" / "s.png", 1, (48, 50), gain=0.7)
    arguments = ["evaluate", str(tmp_path / "d"), "-o", str(tmp_path / "out"), "--fused", str(tmp_path / "f")]
    assert cli.main([*arguments, "--metrics", "mef-ssim,qabf"]) == 0
    text = capsys.readouterr().out
    assert "Brackets of more than two frames: s 3 (s_A.png to s_C.png). Seeing all frames: MEF_SSIM." in text
    assert "Not defined there, because they compare two sources: QABF." in text
    [row] = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    expected = metrics.compute(frames[0], frames[1], fused, ["MEF_SSIM"], more=frames[2:])["MEF_SSIM"]
    assert float(row["MEF_SSIM"]) == expected and row["QABF"] == ""
    assert cli.main(arguments) == 0
    [row] = csv.DictReader((tmp_path / "out" / "scores.csv").open())
    assert {"EN", "AG", "MEF_SSIM", "MEF_SSIM_C", "QY", "MI", "CC"} == row.keys() - {"pair", "method"}
    assert all(row.values())


def test_infrared_is_not_guessed(tmp_path, capsys):
    for folder, told in (("A B", True), ("VI IR", False)):
        data, out = tmp_path / folder, tmp_path / "out"
        for seed, name in enumerate(folder.split()):
            save(data / name / "x.png", seed)
        save(tmp_path / "f" / "x.png", 3)
        arguments = ["evaluate", str(data), "-o", str(out), "--task", "vif", "--fused", str(tmp_path / "f")]
        assert cli.main([*arguments, "--metrics", "EN"]) == 0
        assert ("Taken for infrared, the second of two: x.png." in capsys.readouterr().out) == told
    save(tmp_path / "d" / "u" / "left.png")
    save(tmp_path / "d" / "u" / "right.png")
    assert cli.main(["evaluate", str(tmp_path / "d"), "-o", str(tmp_path / "out"), "--task", "vif"]) == 2
    assert "must say which picture is infrared" in capsys.readouterr().err


def test_fused_names_in_any_case(tmp_path):
    found = make(tmp_path / "d", "garage/Garage_A.jpg", "garage/Garage_B.jpg")
    save(tmp_path / "f" / "Garage_theirs.png")
    methods, missing = dataset.find_fused([tmp_path / "f"], found.pairs)
    assert methods == {"theirs": {"garage": tmp_path / "f" / "Garage_theirs.png"}} and not missing


@pytest.mark.parametrize("names, methods", [
    (["M1/x.png", "M2/deeper/x.JPG"], "M1 M2"),
    (["x-theirs.png"], "theirs"),
    (["x_fused.png", "007_fused.png"], "f"),
    (["VIS_x.png", "7.png"], "f"),
    (["net_x.png", "net_007.png"], "net"),
    (["x (fused).png", "007-[Result].tif"], "f"),
])  # fmt: skip
def test_names_of_fused_pictures(tmp_path, names, methods):
    found = make(tmp_path / "d", "VIS/VIS_x.png", "IR/IR_x.png", "VIS/VIS_007.png", "IR/IR_007.png")
    for name in names:
        save(tmp_path / "f" / name)
    known, missing = dataset.find_fused([tmp_path / "f"], found.pairs)
    assert " ".join(sorted(known)) == methods
    assert all(pictures.keys() == {"x", "007"} or len(pictures) == 1 for pictures in known.values())
    assert len(missing) == 2 * len(known) - len(names)


def test_deep_pictures_and_infrared_of_another_size_are_scored(tmp_path, capsys):
    import cv2

    visible = save(tmp_path / "d" / "vi" / "x.png", size=(40, 48))
    counts = (7000 + 8 * save(tmp_path / "b.png", 1, (20, 24), 1)[..., 0].astype(np.uint16)).astype(np.uint16)
    (tmp_path / "d" / "ir").mkdir()
    cv2.imwrite(str(tmp_path / "d" / "ir" / "x.tif"), counts)
    (tmp_path / "f").mkdir()
    cv2.imwrite(str(tmp_path / "f" / "x.png"), visible[..., ::-1].astype(np.uint16) * 257)
    arguments = ["evaluate", str(tmp_path / "d"), "-o", str(tmp_path / "out"), "--task", "VIF", "--metrics", "MI,RMSE"]
    assert cli.main([*arguments, "--fused", str(tmp_path / "f")]) == 0
    told = (
        "Pictures of f scored with the infrared picture scaled to the visible one's size; with the infrared counts "
        "stretched to the whole range; rounded to 8 bits: 1, x."
    )
    assert told in capsys.readouterr().out
    large = cv2.resize(counts, (48, 40), interpolation=cv2.INTER_CUBIC)
    low, high = np.percentile(large[::2, ::2], (0.1, 99.9))
    seen = ((np.rint(np.clip((large - low) / (high - low), 0, 1) * 65535) + 128) // 257).astype(np.uint8)
    expected = metrics.compute(visible, seen, visible, ["MI", "RMSE"])
    row = next(csv.DictReader((tmp_path / "out" / "scores.csv").open()))
    assert {name: float(row[name]) for name in expected} == expected


def test_roles_of_names():
    letters, infrared = roles.FAMILIES[:2]
    assert roles.split("villa", letters) is None and roles.split("camera_a", letters) == ("camera", 0)
    assert roles.split("A", letters) == ("", 0) and roles.split("x-vis", infrared) == ("x", 0)
    assert roles.split("x.IR", infrared) == ("x", 1) and roles.split("fir", infrared) is None
    assert roles.of_folder("A", letters) == 0 and roles.of_folder("AB", letters) is None
    assert roles.of_folder("data", letters) is None and roles.of_folder("IR_8bit", infrared) == 1
