"""Compiled kernels: cached by content, tried before use, absent with a reason."""

import ctypes
import os
from pathlib import Path

import pytest

from sde.native import compile_and_load

SOURCE = 'extern "C" int answer() { return %d; }\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SDEUQ_CACHE", str(folder))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE % 42)
    if compile_and_load(path).handle is None:
        pytest.skip("no C++ compiler is installed")
    return path


def test_kernel_is_compiled_once_for_each_content(cache: Path, source: Path) -> None:
    for number in (42, 42, 43, 42):
        source.write_text(SOURCE % number)
        library = compile_and_load(source)
        assert library.handle is not None
        assert library.handle.answer() == number
    assert len(list(cache.glob("answer-*.so"))) == len(list(cache.iterdir())) == 2


def test_flags_give_a_kernel_of_their_own(cache: Path, source: Path) -> None:
    assert "-fno-math-errno" in compile_and_load(source, flags=("-fno-math-errno",)).reason
    assert len(list(cache.iterdir())) == 2


def test_kernel_that_fails_its_trial_is_not_used(cache: Path, source: Path) -> None:
    def prepare(handle: ctypes.CDLL) -> None:
        raise RuntimeError("the wrong answer")

    library = compile_and_load(source, prepare=prepare)
    assert library.handle is None
    assert library.reason.startswith("the C++ kernel did not compile")
    assert "plain: the wrong answer" in library.reason


def test_source_that_does_not_compile_gives_the_compilers_first_error(cache: Path, source: Path) -> None:
    source.write_text("int answer( {\n")
    library = compile_and_load(source)
    assert library.handle is None
    assert "error: expected" in library.reason
    assert not list(cache.glob("tmp*"))


def test_machine_without_compiler_gets_the_reason(
    cache: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler was found" in compile_and_load(source).reason
