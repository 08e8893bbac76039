"""What a type checker says of a user's file: results have types, and slips of the pen are errors."""

import importlib.resources
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from ffmef.ops._backends import NAMES
from ffmef.ops.types import Backend

USER = """\
import torch
import ffmef
from ffmef.models import FFMEF
from ffmef.nn import AdaptiveFuse
from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

images = torch.rand(1, 2, 8, 9)
reveal_type(adaptive_fuse(images, [images], [1.0], padding_mode="reflect"))
reveal_type(AdaptiveFuse((1, 3), padding_mode="replicate", device="meta")(images, (images,)))
reveal_type(FFMEF())
reveal_type(ffmef.models.FFMEF().channels)
reveal_type(ffmef.fuse)
wrong: int = adaptive_fuse(images, [images])
adaptive_fuse(images, [images], padding_mode="refelct")
adaptive_fuse(images, [images], padding=1)
AdaptiveFuse((1, 3), padding_mode="mirror")
predict_and_fuse([images], [images], [images], images, backend="gpu")
pyramid_fuse(images, images, images, scale="8")
"""
SAID = [
    (8, "Tensor"),
    (9, "Tensor"),
    (10, "ffmef.models.ffmef.FFMEF"),
    (11, "int"),
    (12, "ndarray"),
    (13, "Incompatible types in assignment"),
    (14, 'Argument "padding_mode"'),
    (15, 'Unexpected keyword argument "padding"'),
    (16, 'Argument "padding_mode"'),
    (17, 'Argument "backend"'),
    (18, 'Argument "scale"'),
]


def test_backend_names_what_is_taken():
    assert get_args(Backend) == NAMES


def test_types_are_announced():
    assert importlib.resources.files("ffmef").joinpath("py.typed").is_file()


@pytest.mark.slow  # the first time: mypy reads torch
def test_a_type_checker_sees_a_users_slips(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    (tmp_path / "user.py").write_text(USER)
    root = Path(__file__).parents[1]
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(root / ".mypy_cache" / "user"), "user.py"]
    command = [sys.executable, "-m", "mypy", "--python-executable", sys.executable, *options]
    found = subprocess.run(command, cwd=tmp_path, env={"MYPYPATH": str(root)}, capture_output=True, text=True)
    lines = [line for line in found.stdout.splitlines() if line.startswith("user.py:") and "defined in" not in line]
    for number, text in SAID:
        assert any(line.startswith(f"user.py:{number}:") and text in line for line in lines), (number, found.stdout)
    assert len(lines) == len(SAID), found.stdout
