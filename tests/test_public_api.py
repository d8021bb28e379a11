"""The public surface: `shardcache.__all__` is exactly it, and every name of it is explained."""

import inspect
import pickle
import re
from pathlib import Path

import pytest

import shardcache
from shardcache import errors

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

SOURCES = {"Files", "HuggingFace", "ImageFolder", "LMDB", "Lines", "Parquet", "WebDataset", "WebDatasetStream"}
CALLS_AND_CLASSES = {
    "Cache",
    "CachedDataset",
    "Estimate",
    "Loader",
    "Meta",
    "Pad",
    "Padded",
    "build",
    "estimate",
    "explain",
    "finish",
    "get_or_build",
    "open",
    "repair",
    "verify",
}


def test_all_is_exactly_the_public_names():
    assert set(shardcache.__all__) == CALLS_AND_CLASSES | SOURCES | set(errors.__all__)
    assert len(shardcache.__all__) == len(set(shardcache.__all__))
    assert dir(shardcache) == sorted(shardcache.__all__)


def test_every_error_is_public_and_belongs_to_the_tree():
    defined = {
        name: error
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == errors.__name__
    }
    assert set(defined) == set(errors.__all__)
    assert {name for name, error in defined.items() if not issubclass(error, errors.ShardCacheError)} == {
        "ShardCacheWarning"
    }
    drawn = re.findall(r"\b\w+Error\b", errors.__doc__ or "")
    assert set(defined) - {"ShardCacheWarning"} <= set(drawn)


@pytest.mark.parametrize("name", sorted(shardcache.__all__))
def test_a_public_name_has_a_docstring_and_a_place_in_the_readme(name: str):
    thing = getattr(shardcache, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.split()) >= 4, f"{name}: {text!r}"
    assert not text.startswith(f"{name}("), f"{name} has only the docstring that Python made for it"
    assert re.search(rf"`[^`\n]*\b{name}\b|\b{name}\(", README), f"README.md does not name {name}"


@pytest.mark.parametrize(
    "name", ["build", "estimate", "finish", "open", "repair", "verify", "CachedDataset", *sorted(SOURCES)]
)
def test_every_argument_of_a_public_call_is_documented(name: str):
    thing = getattr(shardcache, name)
    text = inspect.getdoc(thing) or ""
    arguments = inspect.signature(thing).parameters
    missing = [argument for argument in arguments if not re.search(rf"\b{argument}\b", text.partition("Args:")[2])]
    assert missing == []


def test_what_is_not_public_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        shardcache.nope  # noqa: B018


def test_errors_that_a_loop_may_raise_are_built_from_one_string():
    """torch carries an exception from a worker as its type and its text."""
    for name in errors.__all__:
        assert str(getattr(errors, name)("where, what, was")) == "where, what, was"


def test_no_message_can_steer_the_terminal_that_shows_it():
    """A message may have text from a file that somebody made to do harm; lines of a traceback stay lines."""
    for name in errors.__all__:
        if name != "ShardCacheWarning":
            error = getattr(errors, name)("column '\x1b[2J\u202e\x07'\n\tof\u2028é")
            assert str(error) == "column '\\x1b[2J\\u202e\\x07'\n\tof\\u2028é"
            assert str(type(error)(str(error))) == str(error)
            assert str(pickle.loads(pickle.dumps(error))) == str(error)
