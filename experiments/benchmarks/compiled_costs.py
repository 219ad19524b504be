"""Reads a compiled program's costs from its HLO text: time, loops, collectives, large results.

XLA's TPU compiler writes its estimate of the cycles of each operation into the text. The sum is the
compiler's estimate of the time, and no measurement: it leaves out what a device waits for.
"""

import collections
import re
from collections.abc import Iterator, Mapping

COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ([a-z][\w\-]*)\(")
ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SERIAL = ("sort", "scatter", "gather", "custom-call", "convolution", "dot")


def costs(text: str, turns: Mapping[str, float], *, clock: float | None) -> dict:
    """Returns the costs of an HLO text, as JSON values.

    Args:
      text: the text of a compiled program.
      turns: how often a loop of unknown length is assumed to turn, by a pattern of its source's
        name; the first that matches. Loops that match none count once, and are listed so.
      clock: cycles per second of the device; None leaves the estimate out.

    Returns:
      "operations": the number of each kind that `SERIAL` lists; "collectives": number and bytes by
      kind; "loops": each loop's source, its turns, where they come from ("known", "assumed" or
      "unknown") and how often it is entered; "largest": the largest results. With a clock also
      "estimated_milliseconds", in all and by place in the program.
    """
    computations, entry = parse(text)
    counts: collections.Counter = collections.Counter()
    collectives: dict[str, dict[str, int]] = {}
    loops, places, largest = [], collections.Counter(), []
    for shape, opcode, line, times in walk(computations, entry, turns, loops):
        source = source_of(line)
        kind = opcode.removesuffix("-start")
        if kind in SERIAL:
            counts[kind] += 1
        if kind in COLLECTIVES:
            found = collectives.setdefault(kind, {"number": 0, "bytes": 0})
            found["number"] += 1
            found["bytes"] += size_in_bytes(shape)
        if opcode not in ("parameter", "tuple", "get-tuple-element", "while", "bitcast"):
            largest.append((size_in_bytes(shape), opcode, shape[:80], source[-120:]))
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            places[place_of(source)] += times * int(cycles[1])
    result = {
        "operations": dict(counts),
        "collectives": collectives,
        "loops": loops,
        "largest": sorted(largest, reverse=True)[:10],
    }
    if clock is not None:
        ranked = ((place, 1000 * cycles / clock) for place, cycles in places.most_common(20))
        result["estimated_milliseconds"] = {
            "all": 1000 * sum(places.values()) / clock,
            "places": {place: round(milliseconds, 3) for place, milliseconds in ranked},
        }
    return result


def parse(text: str) -> tuple[dict, str]:
    """Returns the instructions (shape, opcode, line) of each computation, and the entry's name."""
    computations: dict[str, list] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            current = computations.setdefault(found[1], [])
            entry = found[1] if line.startswith("ENTRY") else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            current.append((found[1], found[2], line))
    return computations, entry


def walk(computations, entry, turns, loops) -> Iterator[tuple[str, str, str, float]]:
    """Yields each instruction outside of fusions, with how often it runs; fills `loops`."""

    def visit(name, times):
        for shape, opcode, line in computations.get(name, ()):
            yield shape, opcode, line, times
            if opcode == "while":
                number, origin = turns_of(line, turns)
                loops.append(
                    {"source": source_of(line), "turns": number, "from": origin, "entered": times}
                )
                for part in ("body", "condition"):
                    inner = re.search(rf"{part}=%?([\w.\-]+)", line)
                    yield from visit(inner[1], times * number) if inner else ()
            elif opcode in ("call", "conditional"):
                branches = re.search(r"branch_computations=\{([^}]*)\}", line)
                called = re.findall(r"(?:to_apply|\w+_computation)=%?([\w.\-]+)", line)
                called += re.findall(r"[\w.\-]+", branches[1]) if branches else []
                for inner in called:
                    yield from visit(inner, times)

    yield from visit(entry, 1.0)


def turns_of(line: str, turns: Mapping[str, float]) -> tuple[float, str]:
    """Returns how often a loop turns, and whether that is known, assumed or unknown."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return float(known[1]), "known"
    source = source_of(line)
    for pattern, number in turns.items():
        if re.search(pattern, source):
            return float(number), "assumed"
    return 1.0, "unknown"


def source_of(line: str) -> str:
    """Returns the name that JAX gave the operation: its place in the program."""
    found = re.search(r'op_name="([^"]*)"', line)
    return found[1] if found else ""


def place_of(source: str) -> str:
    """Shortens a source to the module or function that it belongs to."""
    parts = [
        part
        for part in re.sub(r"\d+", "#", source).split("/")
        if not re.match(r"(jit|pmap|shard_map|jvp|vmap|transpose|closed_call|while|body)\b", part)
    ]
    backward = "gradient: " if "transpose(" in source else ""
    return backward + "/".join(parts[:2])


def size_in_bytes(shape: str) -> int:
    """Returns the bytes of all arrays of an HLO shape, tuples included."""
    total = 0
    for dtype, sides in ARRAY.findall(shape):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        bits = 8 if dtype == "pred" or dtype.startswith("f8") else int(re.sub(r"\D", "", dtype))
        total += count * bits // 8
    return total
