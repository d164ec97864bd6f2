#!/bin/sh
# Makes the committed runs anew: what three small audits stored (run.json and rows), without models or images.
# sh tests/runs/make.sh FOLDER; about three minutes on two CPU cores. Another machine gives other weights by
# rounding, so counts change; the tests compare with the rows, never with a number written down.
set -e
here=$(dirname "$0")
small="--preset demo --config $here/small.toml"
latentprint audit digits $small --checkpoints 2 --sampler ancestral:12 --sampler heun:6 --out "$1/marked"
latentprint audit digits $small --model "$1/marked/model" --target 5 --sampler ancestral:12 --out "$1/given"
python "$here/samples.py" "$1/samples.npy"
latentprint audit digits $small --samples "$1/samples.npy" --target 3 --out "$1/samples"
for name in marked given samples; do
    rm -rf "$here/$name"
    mkdir "$here/$name"
    cp -r "$1/$name/run.json" "$1/$name/probes" "$here/$name/"
done
