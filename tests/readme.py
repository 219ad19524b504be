"""The code in README.md, for tests that run it."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def readme_code(heading: str) -> str:
    """Returns the first block of Python under a heading."""
    _, found, section = README.read_text().partition(f"# {heading}\n")
    assert found, f"README.md has no heading {heading}"
    return re.search(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]
