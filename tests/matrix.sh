#!/bin/sh
# One row of `make matrix`: sh tests/matrix.sh UV PYTHON-HOW
#   3.11-lowest-direct  the lowest versions that pyproject.toml allows
#   3.13-locked         requirements.lock
# Its packages stay in .venv-matrix (7 GB a row, less what uv's cache shares); remove the folder when done.
set -eu
uv=$1 row=$2
python=${row%%-*} how=${row#*-} venv=.venv-matrix/$row
echo "== $row"
"$uv" venv --quiet --allow-existing --python "$python" "$venv"
if [ "$how" = locked ]; then
	"$uv" pip install --quiet --python "$venv/bin/python" -r requirements.lock
else
	"$uv" pip install --quiet --python "$venv/bin/python" --resolution "$how" \
		--all-extras --group dev -r pyproject.toml
fi
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable .
"$venv/bin/python" -m pytest -m "not process and not slow and not fuzz"
# Whole trainings and their exports, and commands as users start them.
"$venv/bin/python" -m pytest tests/vision/training/test_train.py tests/vision/export/test_export.py \
	tests/translation/plugin/test_train.py tests/translation/export tests/vision/commands tests/translation/commands
