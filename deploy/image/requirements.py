"""Print requirements of pyproject.toml, one a line: what deploy/lock.sh makes the image's locks of.

    python requirements.py live     the core and the extra *live*, which run in the image
    python requirements.py onnx     the converter of weights, with its own requirements
    python requirements.py files    distributions that are read as files and never imported
    python requirements.py build    the build backend

No requirement is listed twice. The distributions that are only read are pinned in pyproject.toml,
unlike onnx; they are installed without their own requirements (foolbox would bring scipy, 150 MB).
"""

import sys
import tomllib
from pathlib import Path


def main(which: str, pyproject: Path) -> None:
    project = tomllib.loads(pyproject.read_text("utf-8"))
    models = project["project"]["optional-dependencies"]["models"]
    wanted = {
        "live": project["project"]["dependencies"]
        + project["project"]["optional-dependencies"]["live"],
        "onnx": [line for line in models if "==" not in line],
        "files": [line for line in models if "==" in line],
        "build": project["build-system"]["requires"],
    }
    print("\n".join(wanted[which]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
