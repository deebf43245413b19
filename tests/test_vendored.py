"""The chart code relume ships."""

import re
from hashlib import sha256
from importlib.resources import files

STATIC = files("relume") / "report" / "static"
ROW = re.compile(r"^\| `(?P<file>[^`]+)` \|.*\| (?P<version>[\d.]+) \| `(?P<sha256>[0-9a-f]{64})` \|$", re.MULTILINE)


def test_readme_names_what_is_vendored():
    """Every script here has a row in the README with its sha256, and its version stands in the script's first line."""
    rows = {row["file"]: row for row in ROW.finditer((STATIC / "README.md").read_text(encoding="utf-8"))}
    # Only third-party builds carry `.min.js`; relume's own scripts may lie beside them.
    scripts = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.name.endswith(".min.js")}

    assert rows.keys() == scripts.keys()
    for name, script in scripts.items():
        assert sha256(script).hexdigest() == rows[name]["sha256"], f"{name} differs from its row in README.md"
        assert f"v{rows[name]['version']} " in script.decode().splitlines()[0]
