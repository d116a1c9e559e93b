"""An edited file is another version; the same files are the same, wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors import versions


def test_a_version_is_that_of_the_sources(tmp_path: Path) -> None:
    package = tmp_path / "rhumbline"
    (package / "playground").mkdir(parents=True)
    page, script = package / "playground" / "app.js", package / "one.py"
    page.write_text("1")
    script.write_text("a = 1")
    (package / "notes.txt").write_text("no source")
    before = versions.of_code(package)
    assert versions.of_code(shutil.copytree(package, tmp_path / "elsewhere" / "rhumbline")) == before
    (package / "notes.txt").write_text("still none")
    assert versions.of_code(package) == before
    seen = {before, versions.of_code(script)}
    page.write_text("2")
    seen.add(versions.of_code(package))
    script.rename(package / "two.py")
    seen.add(versions.of_code(package))
    assert len(seen) == 4


def test_what_serve_compares_names_the_engine_and_its_code() -> None:
    assert "ray-2." in versions.of_policy()
    assert "vllm" in versions.of_policy()
    assert versions.of_policy() != versions.of_rewards() != versions.of_ingress()
