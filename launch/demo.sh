#!/usr/bin/env bash
# The main job on synthetic portraits, from an empty machine to a report: bash launch/demo.sh
# Everything it makes lies under .venv and demo/. Run again, it reuses what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

say "environment: .venv"
[ -x .venv/bin/python ] || python3 -m venv .venv
export PATH=$PWD/.venv/bin:$PATH
stamp=.venv/.demo-installed  # the pyproject.toml that was installed
if ! cmp -s pyproject.toml "$stamp"; then
  pip install --quiet --disable-pip-version-check --editable '.[fid]'
  cp pyproject.toml "$stamp"
fi

# Two processes share the machine's cores.
cores=$(nproc)
export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=$((cores > 2 ? cores / 2 : 1))
two=(accelerate launch --config_file launch/cpu2.yaml -m dist_sketch)
train=(train --config demo --data.shards demo/shards --out demo/run --expect-world-size 2)

say "synthetic portraits: demo/pairs"
[ -d demo/pairs/val_sketch ] || dist-sketch synth demo/pairs --count 96 --val 16 --size 128

say "shards: demo/shards"
[ -f demo/shards/manifest.json ] || dist-sketch pack demo --root demo/pairs --out demo/shards --size 128
dist-sketch verify demo/shards

say "training on two processes: demo/run"
# In two starts, to show that the second one continues from the checkpoint of the first.
[ -d demo/run/checkpoints ] || "${two[@]}" "${train[@]}" --train.epochs 8
"${two[@]}" "${train[@]}" --train.epochs 16

say "portraits of the validation lines, and their scores: demo/out"
"${two[@]}" infer --run demo/run --input demo/shards --split val --out demo/out
dist-sketch report demo/out

say "what a longer training gives: portrait-128 draws launch/lines"
dist-sketch infer --run portrait-128 --input launch/lines --out demo/portrait-128 --track.wandb off
dist-sketch report demo/portrait-128

say "open demo/out/report.html and demo/portrait-128/report.html"
