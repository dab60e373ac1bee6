"""A field that is a text takes what was typed, to the letter; the others take numbers, lists and mappings."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segtrain.config import FolderSource, KaggleSource, Recipe, load_recipe, override, recorded
from segtrain.errors import UserError
from segtrain.locations import is_remote
from segtrain.tune import space


def is_location(text: str) -> bool:
    try:
        is_remote(text)
    except UserError:
        return False
    return True


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
ODD = """W/scan #2;a: b;[0-9]+;2026-11-27;1e3;1:30;0x1F;true;~;'';'a';{x;*a;!x;- a; a ;a\n b;null ;Null;& b;%a;@a;|
;>;a=b;# a;?;\ufeffa;\x85;\u2028;é;NO;=;<<"""
odd = st.sampled_from(ODD.split(";"))


@settings(max_examples=50)
@given(texts | odd)
def test_a_text_comes_back_to_the_letter_from_command_line_yaml_and_axis(text: str) -> None:
    if text == "null":
        return
    recipe = override(Recipe(), [f"source.group_regex={text}"])
    assert isinstance(recipe.source, FolderSource)
    assert recipe.source.group_regex == text
    assert recorded(recipe.to_yaml()) == recipe
    if not is_location(text):
        return
    recipe = override(Recipe(), [f"source.path={text}", f"data.root={text}", f"run.storage={text}"])
    assert (recipe.source.path, recipe.data.root, recipe.run.storage) == (text, text, text)
    axes = yaml.safe_dump({"train.init_from": {"choice": [text, None]}}, default_flow_style=True, width=10**9)
    recipe = override(Recipe(), [f"tune.space={axes}"])
    assert recorded(recipe.to_yaml()) == recipe
    assert space.recipe_at(recipe, space.grid(recipe)[0]).train.init_from == text


@pytest.mark.parametrize("text", ["2026-11-27", "1e3", "1:30", "0x1F", "010", "1_000", "true", "5", ".inf"])
def test_a_text_field_of_a_yaml_file_takes_what_was_typed(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"""
source: {{path: {text}, group_regex: {text}}}
tune:
  start_from: [{text}, b]
  space:
    train.init_from: {{choice: [{text}, null]}}
    train.init_from,data.cache: {{choice: [[{text}, off]], when: {{train.init_from: [{text}, x]}}}}
""")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert isinstance(recipe.source, FolderSource)
    assert (recipe.source.path, recipe.source.group_regex) == (text, text)
    assert recipe.tune.start_from == (text, "b")
    assert recipe.tune.space["train.init_from"].choice == (text, None)
    assert recipe.tune.space["train.init_from,data.cache"].choice == ([text, "off"],)
    assert recipe.tune.space["train.init_from,data.cache"].when == {"train.init_from": [text, "x"]}


@pytest.mark.parametrize("name", ["2026-11-27", "1e3", "007", "on", "null"])
def test_a_name_in_a_yaml_file_is_what_was_typed(name: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"run:\n  name: {name}  # of today\n")
    assert load_recipe(tmp_path / "r.yaml").run.name == name


def test_a_section_in_an_axis_is_read_as_that_section() -> None:
    axes = "{optimizer: {choice: [{kind: sgd, learning_rate: 1e-2}]}, loss.terms: {choice: [{dice: 1}]}}"
    recipe = override(Recipe(), [f"tune.space={axes}"])
    assert recipe.tune.space["optimizer"].choice == ({"kind": "sgd", "learning_rate": 1e-2},)
    assert recipe.tune.space["loss.terms"].choice == ({"dice": 1},)


@pytest.mark.parametrize("nothing", ["null", ""])
def test_nothing_and_null_unset_a_field_that_may_be_empty(nothing: str) -> None:
    given = ["data.root=x", "source.group_regex=x", "train.clip_norm=1.0", "storage.region=x", "data.max_groups=3"]
    recipe = override(override(Recipe(), given), [f"{one.partition('=')[0]}={nothing}" for one in given])
    assert recipe == Recipe()


def test_null_is_a_name_where_there_must_be_one() -> None:
    assert override(Recipe(), ["run.name=null"]).run.name == "null"


def test_lists_of_texts_hold_texts() -> None:
    recipe = override(Recipe(), ["source.kind=kaggle", "source.files=[2026-11-27, 'a, b.zip', 1e3]"])
    assert isinstance(recipe.source, KaggleSource)
    assert recipe.source.files == ("2026-11-27", "a, b.zip", "1e3")
    assert override(Recipe(), ["tune.start_from=[my.yaml,runs/mine]"]).tune.start_from == ("my.yaml", "runs/mine")


def test_of_two_values_for_one_field_the_last_counts() -> None:
    assert override(Recipe(), ["train.epochs=5", "train.epochs=7"]).train.epochs == 7


def test_quotes_that_are_part_of_a_text_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "segtrain"):
        recipe = override(Recipe(), ["source.path='a b'"])
    assert recipe.source.path == "'a b'"
    assert caplog.messages == [
        "warning: source.path: the quotes are part of the text; leave them out unless that is meant"
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("[2, 8]", (2, 8)), ("[2,8]", (2, 8)), (" 3 ", 3)],
)
def test_numbers_and_lists_are_parsed_for_fields_that_are_such(text: str, value: Any) -> None:
    assert override(Recipe(), [f"cluster.workers={text}"]).cluster.workers == value


def test_a_recipe_of_a_bucket_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"s3://b/r.yaml: recipes are read from this machine; copy it here"):
        load_recipe("s3://b/r.yaml")
    with pytest.raises(UserError, match=r"s3:/b/r.yaml is no S3 URL"):
        load_recipe("s3:/b/r.yaml")


def test_a_recipe_is_read_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text("train: {epochs: 3}\n")
    assert load_recipe("~/r.yaml").train.epochs == 3
    with pytest.raises(UserError, match="there is no user 'nosuchuser'"):
        load_recipe("~nosuchuser/r.yaml")


def test_a_recorded_recipe_with_a_password_is_read_without_it() -> None:
    text = Recipe().to_yaml().replace("endpoint_url: null", "endpoint_url: https://someone:geheim@server:9/x")
    assert recorded(text).storage.endpoint_url == "https://server:9/x"
