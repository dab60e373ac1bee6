"""What a path or URL stands for, and which are refused in a sentence."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config import Recipe, StorageConfig, flatten, override
from segtrain.errors import UserError
from segtrain.launch.preflight import absolute
from segtrain.locations import check_endpoint, check_given, is_remote, join, local_path, within, without_credentials
from segtrain.storage.files import Storage
from segtrain.storage.s3_files import S3Files


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("s3://", "s3:// names no bucket; write s3://bucket/key"),
        ("s3:///b/x", "s3:///b/x names no bucket; write s3://bucket/key"),
        ("s3:/x", "s3:/x is no S3 URL; write s3://bucket/key, or ./s3:/x for a local path"),
        ("s3:x", "s3:x is no S3 URL"),
        ("S3://b/x", "S3://b/x is no S3 URL; write s3://bucket/key"),
        ("s3://b//dbl//x", "has an empty name, . or .. between its slashes; write s3://b/dbl/x"),
        ("s3://b/../x", "write s3://b/x"),
        ("gs://b/x", "gs:// is not supported; give a local path or an s3://bucket/key URL"),
        ("file:/x", "file:/x looks like a URL of file:"),
        ("scan:", "or ./scan: for a local path"),
        ("a\0b", "NUL"),
    ],
)
def test_what_is_neither_a_path_nor_an_s3_url_is_refused(location: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        is_remote(location)
    assert told in str(caught.value)
    for method in (Storage().read_bytes, Storage().list, Storage().delete):
        with pytest.raises(UserError):
            method(location)


@pytest.mark.parametrize("location", ["s3:/key:hunter2@b/x", "s3://key:hunter2@b/x", "S3://key:hunter2@b/x"])
def test_keys_in_a_url_are_never_shown(location: str) -> None:
    with pytest.raises(UserError) as caught:
        is_remote(location)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("location", ["a: b", "W/scan #2", "2026-11-27", "./s3:/x", "C:x", "s3", "a/s3://b", "x:", "~"])
def test_odd_names_of_local_files_are_local_paths(location: str) -> None:
    assert not is_remote(location)


def test_a_url_may_end_in_slashes() -> None:
    assert is_remote("s3://b/x//")
    assert is_remote("s3://b/")


def test_home_is_home_and_a_user_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Storage().write_bytes("~/x/y", b"1")
    assert (tmp_path / "x" / "y").read_bytes() == b"1"
    assert local_path("~") == tmp_path
    told = "~nosuchuser/x: there is no user 'nosuchuser'; write the whole path, or ./~nosuchuser/x for a folder"
    with pytest.raises(UserError) as caught:
        Storage().read_bytes("~nosuchuser/x")
    assert str(caught.value).startswith(told)


def test_a_folder_that_is_called_like_a_home_is_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Storage().write_bytes("./~nosuchuser/x", b"1")
    assert os.listdir("./~nosuchuser") == ["x"]


def test_a_place_within_a_folder_may_be_a_whole_path() -> None:
    assert within("data", "groups.csv") == "data/groups.csv"
    assert [within("data", path) for path in ("/g.csv", "~/g.csv", "s3://b/g.csv")] == [
        "/g.csv",
        "~/g.csv",
        "s3://b/g.csv",
    ]


@settings(max_examples=50)
@given(st.text("ab/:s3 ~.", max_size=12))
def test_a_location_is_local_or_remote_or_refused_and_joining_keeps_it_so(location: str) -> None:
    try:
        remote = is_remote(location)
    except UserError:
        return
    assert not location or is_remote(join(location, "x")) == remote


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("", "DEST is empty; give a local path or an s3:// URL"),
        ("s3://", "DEST: s3:// names no bucket; write s3://bucket/key"),
        ("~nosuchuser/x", "DEST: ~nosuchuser/x: there is no user 'nosuchuser'"),
    ],
)
def test_an_argument_that_is_no_location_is_named(place: str, told: str) -> None:
    check_given({"RUN": "a b", "--out": None, "DEST": "s3://b/x"})
    with pytest.raises(UserError) as caught:
        check_given({"RUN": "x", "DEST": place})
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("field", ["data.root", "train.init_from", "run.storage", "data.node_cache"])
def test_the_field_that_names_a_home_that_there_is_not_is_named(field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: ~nosuchuser/x: there is no user"):
        absolute(override(Recipe(), [f"{field}=~nosuchuser/x"]))


@pytest.mark.parametrize("field", ["data.root", "train.init_from", "run.storage"])
def test_home_becomes_an_absolute_path(field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    flat = flatten(absolute(override(Recipe(), [f"{field}=~/x"])).to_dict())
    assert flat[field] == str(tmp_path / "x")


def test_a_name_that_is_too_long_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long; use another path"):
        Storage().read_bytes(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "https://s3.eu.example", "http://[::1]:9000/", "https://h/p"])
def test_an_address_of_a_server_is_taken_as_it_is(url: str) -> None:
    assert check_endpoint(url) == url


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:9000", "write http://127.0.0.1:9000 or https://127.0.0.1:9000"),
        ("localhost:9000", "write http://localhost:9000"),
        ("s3://bucket", "is no address of a server"),
        ("http://", "is no address of a server"),
        ("http://h:port", "is no address of a server"),
        ("http://[::1", "is no address of a server"),
        ("http://h h", "is no address of a server"),
        ("https://someone:geheim@h", "address holds no user"),
        ("someone:geheim@h", "address holds no user"),
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_that_is_none_is_refused_by_its_variable(
    url: str, told: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv(name, url)
    with pytest.raises(UserError) as caught:
        S3Files(StorageConfig())
    assert str(caught.value).startswith(f"{name}: ")
    assert told in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_credentials_of_urls_are_hidden() -> None:
    assert without_credentials("at https://a:b@h/x, s3:/k:s@b") == "at https://***@h/x, s3:/***@b"
