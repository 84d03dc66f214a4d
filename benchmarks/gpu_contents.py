"""What a folder that `benchmarks.gpu prepare` made holds, read on the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTENTS = "contents.json"


def read_contents(folder: Path) -> Any:
    """The libraries and networks of a folder.

    Raises:
        SystemExit: nothing was prepared there.
    """
    try:
        return json.loads((folder / CONTENTS).read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {folder} holds nothing prepared ({error}); make it with prepare") from error
