"""Runs the Python blocks of documentation pages, each page in one namespace, and checks the names that pages use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ffmef

PAGES = ["docs/use-in-your-model.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S))
    assert blocks
    names: dict = {"__name__": "page"}
    for block in blocks:
        # TorchScript reads the source of what it compiles, so it has to be a file.
        line = text.count("\n", 0, block.start(1))
        path = tmp_path / f"line_{line + 1}.py"
        path.write_text("\n" * line + block[1], encoding="utf-8")
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)


def test_modules_that_pages_name_need_no_import_of_their_own():
    """``import ffmef`` is enough for ``ffmef.focus.fuse(...)`` and whatever else a page writes."""
    root = Path(__file__).parents[1]
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "ffmef/weights").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"(?<![\w./:])ffmef\.([a-z]\w*)(?![\w-]*/)", text))
    assert {"focus", "adjust", "faults"} <= named and named - set(ffmef.__all__) == set()
