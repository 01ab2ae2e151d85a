#!/bin/bash
# Inside the tree: a virtual environment, and a wheel made on the spot installed into it without a network.
set -euo pipefail
refuse() {
    if "$@"; then
        echo "should have failed: $*" >&2
        exit 1
    fi
}

mkdir /srv/wheel
cd /srv/wheel
python3 - <<'END'
import zipfile

body = {
    "layered/__init__.py": "from layered.data import ANSWER\n",
    "layered/data.py": "ANSWER = 42\n",
    "layered-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: layered\nVersion: 1.0\n",
    "layered-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "layered-1.0.dist-info/entry_points.txt": "[console_scripts]\nlayered = layered.cli:main\n",
    "layered/cli.py": "from layered import ANSWER\n\ndef main():\n    print(ANSWER)\n",
}
body.update({f"layered/part{i}.py": f"N = {i}\n" for i in range(200)})
record = "layered-1.0.dist-info/RECORD"
with zipfile.ZipFile("layered-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
    for name, text in body.items():
        wheel.writestr(name, text)
    wheel.writestr(record, "".join(f"{name},,\n" for name in [*body, record]))
END

python3 -m venv /srv/venv
# shellcheck disable=SC1091 # made by the line above
. /srv/venv/bin/activate
pip install --disable-pip-version-check --no-index --find-links /srv/wheel -q layered
test "$(layered)" = 42
pip check
pip list --disable-pip-version-check --format freeze
pip uninstall -q -y layered
refuse python3 -c 'import layered' 2>/dev/null
pip install --disable-pip-version-check --no-index --find-links /srv/wheel -q layered
python3 -c 'from layered.part199 import N; assert N == 199'
