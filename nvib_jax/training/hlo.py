"""Finds what a compiled program sends between devices, by parsing its HLO text."""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(
    r"= (?P<type>.*?) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(",
)
_CALLS = re.compile(r"(?:body|calls|to_apply|condition|branch_computations)=\{?%?([\w.\-, %]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One collective operation of a step.

    Attributes:
      kind: one of `KINDS`.
      group: how many devices take part together.
      size: bytes of its result on one device.
      count: how often a step runs it.
      channel: the operation's id. A TPU's program repeats one operation under the same id, at its
        start, at its end, and in every computation that overlaps with it.
    """

    kind: str
    group: int
    size: int
    count: int
    channel: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step, if the devices use ring algorithms."""
        share = (self.group - 1) / self.group
        each = {
            "all-reduce": 2 * share * self.size,
            "all-gather": share * self.size,
            "reduce-scatter": share * self.size * self.group,
            "all-to-all": share * self.size,
            "collective-permute": self.size,
        }
        return self.count * each[self.kind]


def collectives(text: str) -> list[Collective]:
    """The collective operations of a compiled module; those in loops count once per iteration.

    Args:
      text: `compiled.as_text()`, one device's program.
    """
    bodies: dict[str, list[str]] = defaultdict(list)
    name = entry = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start[2]
            entry = name if start[1] else entry
        else:
            bodies[name].append(line.strip())
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            trips = _TRIPS.search(line)
            inner = count * int(trips[1]) if trips and " while(" in line else count
            for called in _CALLS.findall(line):
                for one in called.replace("%", "").split(","):
                    if one.strip() in bodies:
                        visit(one.strip(), inner)

    visit(entry, 1)
    found: dict[str, Collective] = {}
    for name, count in times.items():
        for line in bodies[name]:
            one = _collective(line, count)
            if one is not None and one.group > 1:
                known = found.setdefault(one.channel or line, one)
                found[one.channel or line] = max(known, one, key=lambda c: (c.count, c.size))
    return list(found.values())


def _collective(line: str, count: int) -> Collective | None:
    found = _OPERATION.search(line)
    if found is None:
        return None
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", found["type"])
    if found["start"] and found["kind"] != "all-reduce":
        arrays = [(kind, dims) for kind, dims in arrays if dims]  # drops the context, all scalars
        arrays = arrays[len(arrays) // 2 :]  # operands come before results
    sizes = [_size(kind, dims) for kind, dims in arrays]
    channel = re.search(r"channel_id=(\d+)", line)
    group = _group(line, found["kind"])
    return Collective(found["kind"], group, sum(sizes), count, channel[1] if channel else "")


def _group(line: str, kind: str) -> int:
    if kind == "collective-permute":
        return 2
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if axes := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", line):
        # For example mesh['a'=4,'b'=8] {'a','b':(1)2} groups all 4 of a with 2 parts of b.
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    return 1


def _size(kind: str, dims: str) -> int:
    size = _BYTES.get(kind, 4)
    for dim in filter(None, dims.split(",")):
        size *= int(dim)
    return size
