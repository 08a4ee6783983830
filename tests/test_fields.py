"""Fields of a dataclass against their annotations."""

import dataclasses
import math
import re
from typing import Any, Literal

import numpy as np
import pytest

from nvib_jax.fields import check_fields

INF, NAN = math.inf, math.nan


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 1
    rate: float = 0.5
    limit: float = INF
    flag: bool = False
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    maybe: float | None = None
    several: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    inner: Inner = dataclasses.field(default_factory=Inner)
    size: int | Literal["auto"] = "auto"
    anything: Any = None


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": -3, "rate": 2, "maybe": 1},
        {"rate": np.float64(1.5), "limit": -INF, "flag": True},
        {"several": ("a", "b"), "numbers": (1, 2), "size": 3, "anything": [NAN]},
    ],
)
def test_what_fits_passes(values):
    check_fields(Outer(**values), "part")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": "60"}, "count is '60' (a str); wanted an int"),
        ({"count": True}, "count is True (a bool); wanted an int"),
        ({"count": 1.5}, "count is 1.5 (a float); wanted an int"),
        ({"count": 2.0}, "count is 2.0 (a float); wanted an int"),
        ({"count": None}, "count is None; wanted an int"),
        ({"count": np.int64(3)}, "wanted an int"),
        ({"count": {"a": 1}}, "count is {'a': 1} (a dict); wanted an int"),
        ({"rate": NAN}, "rate is nan; wanted a finite number"),
        ({"rate": INF}, "rate is inf; wanted a finite number"),
        ({"rate": -INF}, "rate is -inf; wanted a finite number"),
        ({"rate": 10**400}, "(an int); wanted a finite number"),
        ({"rate": True}, "rate is True (a bool); wanted a finite number"),
        ({"rate": "1"}, "rate is '1' (a str); wanted a finite number"),
        ({"rate": [1.0]}, "rate is [1.0] (a list); wanted a finite number"),
        ({"limit": NAN}, "limit is nan; wanted a number"),
        ({"flag": 1}, "flag is 1 (an int); wanted True or False"),
        ({"flag": None}, "flag is None; wanted True or False"),
        ({"name": 5}, "name is 5 (an int); wanted a str"),
        ({"name": b"a"}, "name is b'a' (a bytes); wanted a str"),
        ({"kind": "z"}, "kind is 'z'; wanted one of 'x', 'y'"),
        ({"kind": ["x"]}, "kind is ['x'] (a list); wanted one of 'x', 'y'"),
        ({"maybe": NAN}, "maybe is nan; wanted a finite number or None"),
        ({"maybe": "0"}, "maybe is '0' (a str); wanted a finite number or None"),
        ({"several": "corpus.txt"}, "several is 'corpus.txt' (a str); wanted a tuple"),
        ({"several": ["a"]}, "several is ['a'] (a list); wanted a tuple, of which each is a str"),
        ({"several": ("a", 5)}, "several[1] is 5 (an int); wanted a str"),
        ({"numbers": (1, True)}, "numbers[1] is True (a bool); wanted an int"),
        ({"inner": None}, "inner is None; wanted an Inner"),
        ({"inner": {"width": 3}}, "inner is {'width': 3} (a dict); wanted an Inner"),
        ({"inner": Inner("3")}, "part.inner.width is '3' (a str); wanted an int"),
        ({"size": "all"}, "size is 'all'; wanted an int or one of 'auto'"),
        ({"size": True}, "size is True (a bool); wanted an int or one of 'auto'"),
    ],
)
def test_what_does_not_fit_is_named(values, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        check_fields(Outer(**values), "part")
    assert str(caught.value).startswith("part.")
    with pytest.raises(ValueError) as caught:
        check_fields(Outer(**values), "")
    assert str(caught.value).startswith(next(iter(values)))


def test_true_is_not_the_choice_one():
    @dataclasses.dataclass(frozen=True)
    class Level:
        level: Literal[1, 2] = 1

    check_fields(Level(2), "x")
    with pytest.raises(ValueError, match=r"x.level is True \(a bool\); wanted one of 1, 2"):
        check_fields(Level(True), "x")


def test_a_long_value_is_shortened():
    with pytest.raises(ValueError) as caught:
        check_fields(Outer(count="9" * 10_000), "part")
    assert len(str(caught.value)) < 200


def test_a_deep_value_is_shortened():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"part.count is \[+\.\.\.\]+ \(a list\); wanted an int"):
        check_fields(Outer(count=deep), "part")


def test_an_annotation_that_nobody_can_check_is_no_excuse():
    @dataclasses.dataclass(frozen=True)
    class Strange:
        table: dict[str, int] = dataclasses.field(default_factory=dict)

    with pytest.raises(TypeError, match=r"cannot check the annotation dict\[str, int\]"):
        check_fields(Strange(), "x")
