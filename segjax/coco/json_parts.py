"""Parses a COCO JSON file and remembers where each annotation lies in it."""

import codecs
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from segjax.coco.annotations import DECODER

_SPACE = re.compile(r"[ \t\n\r]*")
_PARTS = ("images", "annotations", "categories")


def read_parts(
    path: Path, visit: Callable[[dict, int, int], None], needed: Sequence[str]
) -> dict[str, list]:
    """Parses a file; passes each element of "annotations" and its place to `visit`.

    Raises:
      ValueError: the file is no JSON in UTF-8, lacks a needed list or has it twice, or `visit`
        raised one; the message begins with the file.
    """
    content = path.read_bytes()
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"{path}: encoded as {encoding.upper()}; save the file as UTF-8")
    # Latin-1 has one character per byte, so that places in the text are places in the file.
    text = content.decode("latin-1")
    start = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        if text.startswith("[", _skip_space(text, start)):
            raise ValueError(
                f"not in COCO's format: a list, as files of results are; expected {{...}} with "
                f"{', '.join(needed)}"
            )
        parts = _read_object(text, start, visit)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON, or cut short ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not encoded as UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path}: not in COCO's format: nested too deeply") from error
    except ValueError as error:
        # Python reads no longer integers.
        long = "a whole number has more than 4300 digits; expected ids and coordinates"
        message = long if "set_int_max_str_digits" in str(error) else error
        raise ValueError(f"{path}: {message}") from error
    if missing := [part for part in needed if part not in parts]:
        raise ValueError(
            f"{path}: not in COCO's format: expected lists named {', '.join(needed)}; missing: "
            f"{', '.join(missing)}"
        )
    return parts


def _read_object(text: str, start: int, visit: Callable[[dict, int, int], None]) -> dict[str, list]:
    """Parses the top-level object; passes each element of "annotations" to `visit`."""
    parts = {}
    position = _after(text, start, "{")
    while text[position : position + 1] != "}":
        key, end = DECODER.raw_decode(text, position)
        if not isinstance(key, str):
            raise json.JSONDecodeError("Expecting a name in quotes", text, position)
        position = _after(text, end, ":")
        if key in parts:
            raise ValueError(f"two lists named {key}; expected one")
        if key == "annotations" and text[position : position + 1] == "[":
            parts[key] = []
            position = _visit_elements(text, position, visit)
        else:
            value, end = DECODER.raw_decode(text, position)
            if key in _PARTS and isinstance(value, list):
                parts[key] = _in_utf_8(value, text, position, end)
            position = _skip_space(text, end)
        if text[position : position + 1] != "}":
            position = _after(text, position, ",")
    if (end := _skip_space(text, position + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return parts


def _visit_elements(text: str, position: int, visit: Callable) -> int:
    """Calls `visit(element, start, end)` along a list; returns the position after the list."""
    position = _after(text, position, "[")
    while text[position : position + 1] != "]":
        value, end = DECODER.raw_decode(text, position)
        visit(_in_utf_8(value, text, position, end), position, end)
        position = _skip_space(text, end)
        if text[position : position + 1] != "]":
            position = _after(text, position, ",")
    return _after(text, position, "]")


def _in_utf_8(value, text: str, start: int, end: int):
    """Parses a part of the text again if it has characters beyond ASCII, which are UTF-8."""
    if text.isascii() or (part := text[start:end]).isascii():
        return value
    return DECODER.decode(part.encode("latin-1").decode("utf-8"))


def _after(text: str, position: int, sign: str) -> int:
    """Returns the position after `sign`, which must come next, and after the space behind it."""
    position = _skip_space(text, position)
    if text[position : position + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, position)
    return _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern also matches no space
    return match.end()
