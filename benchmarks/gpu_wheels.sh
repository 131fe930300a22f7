#!/bin/sh
# Wheels that benchmarks/gpu_hour.py needs beside a usual torch installation, for a machine without network: about 9 MB.
# NumPy, pandas, SciPy, accelerate, safetensors, PyYAML, tqdm and matplotlib are taken to be there.
#   sh benchmarks/gpu_wheels.sh .whl [PYTHON VERSION]
# and there: python3 -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl; export PYTHONPATH=/tmp/site:$PWD
set -eu
out=${1:?folder for the wheels}
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "${2:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$out" \
    --constraint "$(dirname "$0")/../constraints.txt" \
    monai monai-generative nibabel pydantic pydantic-core annotated-types typing-inspection
du -sh "$out"
