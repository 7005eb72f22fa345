"""The pages of a server: files whose own script and style may run, and nothing else, from nowhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import NamedTuple

_WEB = Path(__file__).parent / "web"
_SHARED = re.compile(r"<!--# (\w+)\.(css|js) -->")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page(NamedTuple):
    """A page, and the policy that lets exactly what is in it run."""

    text: str
    policy: str  # Content-Security-Policy


def read_page(path: Path) -> Page:
    """A page, by its file.

    A line ``<!--# NAME.css -->`` or ``<!--# NAME.js -->`` stands for that file of ours, which pages share.

    Example:
        >>> policy = read_page(Path(__file__).with_name("web") / "docs.html").policy
        >>> "unsafe" in policy, policy.count("sha256-")
        (False, 2)
    """
    text = _SHARED.sub(_shared, path.read_text(encoding="utf-8"))
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(text, policy)


def _shared(match: re.Match[str]) -> str:
    tag = {"css": "style", "js": "script"}[match[2]]
    content = (_WEB / f"{match[1]}.{match[2]}").read_text(encoding="utf-8")
    return f"<{tag}>\n{content}</{tag}>"
