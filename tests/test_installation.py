"""The package as people install and start it, also beside other files of its name."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
import sys
import zipapp
from base64 import urlsafe_b64encode
from importlib.util import find_spec
from pathlib import Path

import pytest

import microgpt
import microgpt_fast
from microgpt.commands.installation import damage

from conftest import needs_compiled, needs_processes

pytestmark = needs_processes

START = [  # like the script that pip writes, and from the package itself
    pytest.param(["-c", "import sys, microgpt_fast; sys.exit(microgpt_fast.main())"], id="script"),
    pytest.param(["-m", "microgpt"], id="module"),
]


def run(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)


def run_copy(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with a copy of the package, without the finder of an editable installation."""
    needed = filter(None, map(find_spec, ("numpy", "safetensors", "tqdm", "matplotlib", "dateutil")))
    folders = dict.fromkeys([folder, *(Path(str(spec.origin)).parents[1] for spec in needed)])
    return run("-S", *arguments, PYTHONPATH=os.pathsep.join(map(str, folders)))


def copy_package(folder: Path) -> None:
    source = Path(microgpt.__file__).parent
    shutil.copytree(source, folder / "microgpt", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    shutil.copy(microgpt_fast.__file__, folder)


def record(folder: Path, name: str, files: list[Path]) -> None:
    """The files that an installer writes about a distribution."""
    information = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (information / "top_level.txt").write_text("microgpt\n")
    lines = []
    for file in files:
        digest = urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")
        lines.append(f"{file.relative_to(folder).as_posix()},sha256={digest},{file.stat().st_size}\n")
    (information / "RECORD").write_text("".join(lines))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages, in which microgpt-fast is one."""
    site = tmp_path / "site"
    site.mkdir()
    copy_package(site)
    record(site, "microgpt-fast", sorted(site.rglob("*.py")))
    return site


def install_the_other_project(site: Path) -> list[Path]:
    files = [site / "microgpt" / name for name in ("__init__.py", "model.py", "sample.py")]
    for file in files:
        file.write_text("class MicroGPT: pass\n")
    files[0].write_text("from .model import MicroGPT\n__version__ = '0.0.2'\n")
    record(site, "microgpt", files)
    return files


@pytest.mark.parametrize("start", START)
def test_files_that_another_project_has_replaced_are_named(site: Path, start: list[str]) -> None:
    assert run_copy(site, *start, "train", "--steps=1", "--n-embd=4").returncode == 0
    install_the_other_project(site)
    result = run_copy(site, *start, "train")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"microgpt: error: {site / 'microgpt/__init__.py'} and 1 more of microgpt-fast replaced by another project, "
        "microgpt: pip uninstall microgpt, then pip install --force-reinstall --no-deps microgpt-fast\n"
    )


def test_damage_is_found_where_there_is_any(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    assert damage() is None
    files = install_the_other_project(site)
    assert f"{files[0]} and 1 more of microgpt-fast replaced by another project, microgpt: " in str(damage())
    files[1].unlink()
    shutil.rmtree(site / "microgpt-0.1.0.dist-info")
    assert f"{files[1]} of microgpt-fast missing" in str(damage())


@pytest.mark.parametrize("start", START)
def test_files_that_another_project_has_taken_along_are_named(site: Path, start: list[str]) -> None:
    for file in install_the_other_project(site):
        file.unlink()
    shutil.rmtree(site / "microgpt-0.1.0.dist-info")
    result = run("-S", *start, "train", PYTHONPATH=site)  # site-packages may hold another copy, undamaged
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"microgpt: error: {site / 'microgpt/__init__.py'} and 1 more of microgpt-fast missing, as after "
        "`pip uninstall microgpt`: pip install --force-reinstall --no-deps microgpt-fast\n"
    )


def test_a_file_that_its_user_has_changed_is_not_blamed(site: Path) -> None:
    with open(site / "microgpt" / "model.py", "a") as file:
        file.write("import a_module_that_is_not_there\n")
    result = run_copy(site, "-m", "microgpt", "train")
    assert (result.returncode, result.stderr) == (2, "microgpt: error: No module named 'a_module_that_is_not_there'\n")


@pytest.mark.parametrize("name", ["microgpt.py", "microgpt/__init__.py"])
def test_what_hides_the_package_is_named_and_not_run(site: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "work" / name
    other.parent.mkdir(parents=True)
    other.write_text("print('num docs: 32033')\n")
    result = run("-S", *START[0].values[0], "info", PYTHONPATH=os.pathsep.join([str(tmp_path / "work"), str(site)]))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"microgpt: error: {other} hides the package of this name: rename it or move it away\n"


@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("MICROGPT_BACKEND", "MICROGPT_BACKEND must be 'compiled' or 'reference', got 'gpu'"),
        pytest.param("MICROGPT_ISA", "MICROGPT_ISA must be ", marks=needs_compiled),
    ],
)
def test_a_wrong_environment_is_one_line(start: list[str], variable: str, message: str) -> None:
    result = run(*start, "info", **{variable: "gpu"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"microgpt: error: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("start", START)
def test_ctrl_c_while_importing_is_quiet(start: list[str], tmp_path: Path) -> None:
    """NumPy's import takes the longest, and may turn Ctrl-C into an ImportError."""
    (tmp_path / "numpy.py").write_text(
        "import signal\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError('PyCapsule')\n"
    )
    result = run(*start, "info", PYTHONPATH=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


def test_importing_the_package_alone_imports_nothing_that_could_fail() -> None:
    names = "sorted(name for name in sys.modules if name.partition('.')[0] in ('microgpt', 'numpy'))"
    result = run("-c", f"import sys, microgpt; print({names})", MICROGPT_BACKEND="gpu")
    assert (result.stdout, result.stderr) == ("['microgpt']\n", "")
    result = run("-c", "from microgpt import Value", MICROGPT_BACKEND="gpu")
    assert result.stderr.endswith("ValueError: MICROGPT_BACKEND must be 'compiled' or 'reference', got 'gpu'\n")


def test_the_public_names_are_there_and_no_others() -> None:
    for name in microgpt.__all__:
        assert getattr(microgpt, name).__name__ in (name, "softmax")
    assert {*microgpt.__all__, "__version__"} <= {*dir(microgpt)}
    (block,) = (each for each in ast.parse(Path(microgpt.__file__).read_text("utf-8")).body if isinstance(each, ast.If))
    for_type_checkers = {each.names[0].asname for each in block.body if isinstance(each, ast.ImportFrom)}
    assert for_type_checkers == {*microgpt.__all__}
    assert not hasattr(microgpt, "choose")
    with pytest.raises(AttributeError, match=r"^module 'microgpt' has no attribute 'trian'$"):
        _ = microgpt.trian


def test_everything_is_found_in_a_zip_file(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    copy_package(app)
    zipapp.create_archive(app, tmp_path / "app.pyz", main="microgpt.__main__:main")
    shutil.rmtree(app)
    options = ["--steps=1", "--n-embd=4", "--samples=1", f"--out={tmp_path / 'names.safetensors'}"]
    result = run_copy(tmp_path, tmp_path / "app.pyz", "train", *options)
    assert (result.returncode, result.stdout[:48]) == (0, "data    names.txt: 5,163 documents, 27 tokens\nmo")
    pytest.importorskip("matplotlib")
    page = tmp_path / "names.html"
    result = run_copy(tmp_path, tmp_path / "app.pyz", "report", tmp_path / "names.safetensors", f"--out={page}")
    assert (result.returncode, page.read_text(encoding="utf-8")[:15]) == (0, "<!DOCTYPE html>")
