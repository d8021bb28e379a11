"""Taking samples apart and putting them together again."""

import collections
import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardcache.builder.infer import infer
from shardcache.format import schema, spec
from shardcache.format.schema import (
    ABSENT,
    DictNode,
    Leaf,
    ListNode,
    RecordNode,
    TupleNode,
    column_name,
    columns_below,
    joiner,
    makers,
    plain_record,
    record_kind,
    splitter,
    validate_structure,
    walk,
)
from tests import strategies
from tests.exact import exact
from tests.strategies import Box, Point

pytestmark = strategies.QUIET


def names_of(root: Any) -> list[str]:
    return [column_name(path, node) for _, path, node in walk(root)]


def take_apart(root: Any, sample: Any) -> list[Any]:
    values: list[Any] = []
    splitter(root)(sample, values)
    assert len(values) == columns_below(root)
    return values


def put_together(root: Any, values: list[Any], types: Any = ()) -> Any:
    return joiner(root, makers(root, types), lambda _: True)(values)


@settings(max_examples=80)
@given(st.lists(strategies.nested(strategies.plain_leaves), min_size=1, max_size=6), st.integers(1, 6))
def test_every_sample_comes_back_whatever_the_structure_was_inferred_from(samples, probed):
    root, columns = infer(samples[:probed])
    assert validate_structure(root) is None
    assert names_of(root) == [column.name for column in columns]
    assert len(set(names_of(root))) == len(columns)
    for sample in samples:
        assert exact(put_together(root, take_apart(root, sample))) == exact(sample)


TREE = DictNode(
    ("a", "b/c", 3),
    (
        Leaf(),
        TupleNode((Leaf(), ListNode((Leaf(), Leaf())))),
        RecordNode("Box", ("corner", "label"), (Leaf(), Leaf()), True),
    ),
)


def test_columns_are_named_by_their_paths_in_preorder():
    assert names_of(TREE) == [
        "/",
        "a",
        "b~1c/",
        "b~1c/0",
        "b~1c/1/",
        "b~1c/1/0",
        "b~1c/1/1",
        "3/",
        "3/corner",
        "3/label",
    ]
    assert names_of(Leaf()) == ["sample"]
    assert names_of(DictNode(("~/",), (Leaf(),))) == ["/", "~0~1"]


def test_a_sample_of_the_trees_shape_leaves_the_columns_of_inner_nodes_empty():
    sample = {"a": 1, "b/c": (2, [3, 4]), 3: Box(5, 6)}
    values = take_apart(TREE, sample)
    assert values == [ABSENT, 1, ABSENT, 2, ABSENT, 3, 4, ABSENT, 5, 6]
    assert put_together(TREE, values, [Box]) == sample


@pytest.mark.parametrize(
    ("sample", "at"),
    [
        ([1], 0),
        (None, 0),
        ({}, 0),
        ({"a": 1, "z": 2}, 0),
        ({"a": 1, "b/c": (2, [3])}, 4),
        ({"a": 1, "b/c": [2, [3, 4]]}, 2),
        ({"a": 1, "b/c": (2, (3, 4))}, 4),
        ({"a": 1, "b/c": None}, 2),
        ({"a": 1, 3: Point(1, 2)}, 7),
        ({"a": 1, 3: {"corner": 1, "label": 2}}, 7),
        ({"a": 1, 3.0: Box(1)}, 0),
        (collections.OrderedDict(a=1), 0),
        (collections.defaultdict(int, a=1), 0),
    ],
)
def test_a_part_of_another_shape_goes_whole_into_the_column_of_its_node(sample, at):
    values = take_apart(TREE, sample)
    assert values[at] is not ABSENT
    below = {position: node for position, _, node in walk(TREE)}[at]
    assert all(value is ABSENT for value in values[at + 1 : at + columns_below(below)])
    assert put_together(TREE, values, [Box]) == sample


@pytest.mark.parametrize("present", [{"a"}, {"b/c"}, {3}, {"a", 3}, {"b/c", 3}])
def test_a_key_that_a_sample_lacks_is_lacking_again(present):
    whole = {"a": 1, "b/c": (2, [3, 4]), 3: Box(5)}
    sample = {key: part for key, part in whole.items() if key in present}
    values = take_apart(TREE, sample)
    assert values[0] is ABSENT
    assert put_together(TREE, values, [Box]) == sample


def test_none_is_not_a_lacking_key():
    assert put_together(TREE, take_apart(TREE, {"a": None})) == {"a": None}


@pytest.mark.parametrize(("key", "other"), [(1, True), (0, False), (1, 1.0), ("a", np.str_("a"))])
def test_keys_that_are_equal_but_not_the_same_are_told_apart(key, other):
    root, _ = infer([{key: 1}])
    assert isinstance(root, DictNode)
    assert exact(put_together(root, take_apart(root, {key: 5}))) == exact({key: 5})
    got = put_together(root, take_apart(root, {other: 5}))
    assert [type(found) for found in got] == [type(other)]


def test_an_ordered_dict_keeps_its_order_also_where_it_is_another():
    one, two = (collections.OrderedDict(pairs) for pairs in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    root, _ = infer([one, one])
    assert take_apart(root, one)[0] is ABSENT
    for sample in (one, two, collections.OrderedDict(b=1)):
        assert exact(put_together(root, take_apart(root, sample))) == exact(sample)


class TestRecords:
    def test_a_class_is_known_by_its_name_and_fields(self):
        assert record_kind(Point) == ("Point", ("x", "y"), False)
        assert record_kind(Box) == ("Box", ("corner", "label"), True)
        for cls in (int, tuple, dict, type("Odd", (tuple,), {"_fields": ("a",)})):
            assert record_kind(cls) is None
        assert record_kind(dataclasses.make_dataclass("Ok", ["a"])) == ("Ok", ("a",), True)
        Box2 = dataclasses.make_dataclass("Box", ["corner"])  # noqa: N806
        root = RecordNode("Box", ("corner", "label"), (Leaf(), Leaf()), True)
        assert take_apart(root, Box2(1))[0] == Box2(1)

    def test_a_name_that_no_class_could_have_is_none(self):
        odd = dataclasses.make_dataclass("Ok", ["a"])
        odd.__name__ = "not a name"
        assert record_kind(odd) is None

    def test_the_stand_in_can_be_pickled_and_has_the_fields(self):
        record = plain_record("Thing", ("a", "_b", "class"))._make([1, 2, 3])
        again = pickle.loads(pickle.dumps(record))
        assert (type(again) is type(record), again, again.a) == (True, (1, 2, 3), 1)

    def test_a_dataclass_whose_field_was_never_set_goes_whole(self):
        box = Box(1)
        del box.corner
        root = RecordNode("Box", ("corner", "label"), (Leaf(), Leaf()), True)
        assert take_apart(root, box)[0] is box

    def test_the_first_class_that_fits_is_taken(self):
        twin = dataclasses.make_dataclass("Box", ["corner", "label"])
        root = RecordNode("Box", ("corner", "label"), (Leaf(), Leaf()), True)
        assert type(put_together(root, [ABSENT, 1, 2], [Point, twin, Box])) is twin


class TestProjection:
    def project(self, wanted: set[int]) -> Any:
        values = take_apart(TREE, {"a": 1, "b/c": (2, [3, 4]), 3: Box(5, 6)})
        kept = {at for at, _, node in walk(TREE) if not wanted.isdisjoint(range(at, at + columns_below(node)))}
        return joiner(TREE, makers(TREE, [Box]), kept.__contains__)(
            [value if at in wanted else ABSENT for at, value in enumerate(values)]
        )

    @pytest.mark.parametrize(
        ("wanted", "want"),
        [
            ({1}, {"a": 1}),
            ({3}, {"b/c": (2,)}),
            ({5, 6}, {"b/c": ([3, 4],)}),
            ({6}, {"b/c": ([4],)}),
            ({8, 9}, {3: Box(5, 6)}),
        ],
    )
    def test_what_is_not_wanted_is_left_out(self, wanted, want):
        assert self.project(wanted) == want

    def test_a_part_of_a_record_is_a_namedtuple_of_the_rest(self):
        got = self.project({9})[3]
        assert (got._fields, got.label) == (("label",), 6)


@pytest.mark.parametrize(
    ("root", "what"),
    [
        (TupleNode(()), "without items"),
        (DictNode((), ()), "without items"),
        (DictNode(("a",), (Leaf(), Leaf())), "names do not fit"),
        (DictNode(("a", "a"), (Leaf(), Leaf())), "names do not fit"),
        (RecordNode("A", ("a", "a"), (Leaf(), Leaf()), True), "names do not fit"),
        (RecordNode("class", ("a",), (Leaf(),), True), "called 'class'"),
        (RecordNode("", ("a",), (Leaf(),), True), "called ''"),
        (TupleNode((ListNode(()),)), "without items"),
    ],
)
def test_a_tree_that_is_not_one_is_refused(root, what):
    assert what in str(validate_structure(root))


class TestInference:
    def test_names_of_fields_are_told_from_data(self):
        assert names_of(infer([{"a": 1, "b": 2}] * 3)[0]) == ["/", "a", "b"]
        assert names_of(infer([{f"word {k}": 1} for k in range(9)])[0]) == ["sample"]
        assert names_of(infer([{1: 0, "1": 0}])[0]) == ["sample"]
        assert names_of(infer([{"": 0}])[0]) == ["sample"]
        assert names_of(infer([{"\ud800": 0}])[0]) == ["sample"]
        assert names_of(infer([{2**64: 0}])[0]) == ["sample"]
        assert names_of(infer([{(1,): 0}])[0]) == ["sample"]

    def test_lists_of_one_length_are_columns_and_others_data(self):
        assert names_of(infer([[1, 2], [3, 4]])[0]) == ["/", "0", "1"]
        assert names_of(infer([[1, 2], [3]])[0]) == ["sample"]
        assert names_of(infer([list(range(100))] * 2)[0]) == ["sample"]
        assert names_of(infer([[]])[0]) == ["sample"]

    @pytest.mark.parametrize(
        ("values", "type_", "dtype", "shape"),
        [
            ([1, None, 3], "int", "<i8", ()),
            ([1, True], "nested", "|u1", (None,)),
            ([None, None], "nested", "|u1", (None,)),
            ([np.zeros(3), np.zeros(3)], "array", "<f8", (3,)),
            ([np.zeros((3, 1)), np.zeros((3, 2))], "array", "<f8", (3, None)),
            ([np.zeros(3), np.zeros((3, 2))], "nested", "|u1", (None,)),
            ([np.zeros(3), np.zeros(3, "f4")], "nested", "|u1", (None,)),
            ([np.float32(1)], "scalar", "<f4", ()),
            (["a", "b"], "str", "|u1", (None,)),
            ([object()], "nested", "|u1", (None,)),
        ],
    )
    def test_a_leaf_has_the_one_type_that_all_values_have(self, values, type_, dtype, shape):
        _, columns = infer([(value,) for value in values])
        assert (columns[1].type, columns[1].dtype, columns[1].shape) == (type_, dtype, shape)

    def test_more_columns_than_the_format_has_become_one(self, monkeypatch):
        monkeypatch.setattr(spec, "MAX_COLUMNS", 10)
        assert len(infer([list("abcdefghi")])[1]) == 10
        assert len(infer([list("abcdefghij")])[1]) == 1

    def test_a_structure_is_never_deeper_than_the_format_allows(self):
        sample: Any = 1
        for _ in range(100):
            sample = (sample,)
        root, _ = infer([sample])
        assert validate_structure(root) is None
        assert exact(put_together(root, take_apart(root, sample))) == exact(sample)


def test_the_marker_for_what_is_absent_stays_the_same_object():
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert repr(schema.ABSENT) == "ABSENT"


@pytest.mark.parametrize(
    "fields", [("\ufb01", "fi"), ("\uff2e\uff4f\uff4e\uff45", "b"), ("\uff3f\uff3fdebug\uff3f\uff3f", "b")]
)
def test_names_that_python_would_take_for_other_ones_give_way(fields: tuple[str, str]):
    """namedtuple compiles its fields, and Python knows an identifier by its form NFKC alone."""
    record = plain_record("Thing", fields)._make([1, 2])
    assert (tuple(record), record._fields[0]) == ((1, 2), "_0")
    assert pickle.loads(pickle.dumps(record)) == record
