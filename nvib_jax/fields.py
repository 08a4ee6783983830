"""Checks the fields of a configuration against their annotations, which Python does not.

A dataclass accepts any values, from a preset, from JSON or from a notebook. Its `__post_init__`
calls `check_fields`, so that a wrong value is reported when it is given and not by a traceback an
hour later. This file needs the standard library only.
"""

import dataclasses
import functools
import math
import reprlib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

INFINITE = {"infinite": True}  # metadata of a field that may be infinite
_NAMES = {bool: "True or False", int: "an int", str: "a str"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
short = _SHORT.repr  # repr, cut short for values that are long or deeply nested


def check_fields(config: Any, where: str) -> None:
    """Check every field of a dataclass instance, and of the dataclasses in it, by its annotation.

    Annotations may be made of bool, int, float, str, Any, a class, a dataclass, `Literal`, `None`,
    unions and `tuple[X, ...]`. A bool is not an int, 1.5 is not an int, a list is not a tuple; but
    an int is a float. NaN is never accepted as a float. Infinity is accepted only if the field's
    default is infinite or it is a `field(metadata=INFINITE)`.

    Args:
      config: a dataclass instance.
      where: the prefix of the fields' names, "train" for `train.steps`; may be empty.

    Raises:
      ValueError: the first field that is wrong: its dotted name, what it is and what was wanted.
      TypeError: an annotation is made of something else.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Train:
    ...     steps: int = 1
    >>> check_fields(Train(), "train")
    >>> check_fields(Train("60"), "train")
    Traceback (most recent call last):
    ...
    ValueError: train.steps is '60' (a str); wanted an int
    """
    cls: type = type(config)
    hints = _hints(cls)
    for field in dataclasses.fields(config):
        name = f"{where}.{field.name}" if where else field.name
        check_value(getattr(config, field.name), hints[field.name], name, may_be_infinite(field))


def may_be_infinite(field: dataclasses.Field) -> bool:
    """Whether this field may be infinite."""
    by_default = isinstance(field.default, float) and math.isinf(field.default)
    return by_default or bool(field.metadata.get("infinite"))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def check_value(value: Any, hint: Any, name: str, infinite: bool = False) -> None:
    """Check one value by an annotation, as `check_fields` does for each field.

    Args:
      value: anything.
      hint: the annotation, resolved.
      name: the value's name in errors.
      infinite: whether a float may be infinite here.

    Raises:
      ValueError: naming the value, or the part of it that is wrong.
      TypeError: the annotation is of a kind that cannot be checked.
    """
    for choice in _choices(hint):
        kind = typing.get_origin(choice) or choice
        if kind is tuple and isinstance(value, tuple):
            (part,) = (arg for arg in typing.get_args(choice) if arg is not ...)
            for i, item in enumerate(value):
                check_value(item, part, f"{name}[{i}]", infinite)
            return
        if dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type, kind)):
            check_fields(value, name)
            return
        if _is(value, choice, infinite):
            return
    wanted = " or ".join(dict.fromkeys(_wanted(choice, infinite) for choice in _choices(hint)))
    raise ValueError(f"{name} is {_said(value, hint)}; wanted {wanted}")


def _choices(hint: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _choices(member)
    else:
        yield hint


def _is(value: Any, hint: Any, infinite: bool) -> bool:
    """Whether the value fits an annotation that is not a union, a dataclass or a tuple."""
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if typing.get_origin(hint) is Literal:  # 1 == True, so the types are compared as well
        return any(type(value) is type(a) and value == a for a in typing.get_args(hint))
    if hint is float:
        return _is_number(value) and (_is_finite(value) or (infinite and value == value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type):
        return isinstance(value, hint) and typing.get_origin(hint) is None
    if typing.get_origin(hint) is tuple:
        return False
    raise TypeError(f"check_fields cannot check the annotation {hint!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of 400 digits does not fit in a float
        return False


def _wanted(hint: Any, infinite: bool) -> str:
    if hint is None or hint is type(None):
        return "None"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        return f"a tuple, of which each is {_wanted(typing.get_args(hint)[0], infinite)}"
    if hint is float:
        return "a number" if infinite else "a finite number"
    return _NAMES.get(hint) or _a(hint.__name__)


def _said(value: Any, hint: Any) -> str:
    """The value in words, with its type if the type is what is wrong."""
    text = short(value)
    kinds = {
        kind
        for choice in _choices(hint)
        for kind in (map(type, typing.get_args(choice)) if _literal(choice) else [choice])
    }
    if value is None or type(value) in kinds:
        return text
    return f"{text} ({_a(type(value).__name__)})"


def _literal(hint: Any) -> bool:
    return typing.get_origin(hint) is Literal


def _a(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
