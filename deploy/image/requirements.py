"""Print what pyproject.toml asks for, one requirement a line, for a layer that pip alone fills.

    python requirements.py live     the core and the extra *live*: what runs in the image
    python requirements.py onnx     what converts the weights, with its own requirements
    python requirements.py files    distributions that are read as files, never imported
    python requirements.py build    the build backend

So a change of the sources does not install anything again, and nothing is listed twice. The
distributions that are only read are pinned in pyproject.toml, which is how they are told from onnx;
they are installed without their requirements (foolbox would bring scipy, 150 MB).
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
