#!/usr/bin/env bash
# Everything that only a GPU can show, in one call and on one page: bash tests/gpu.sh [options]
#   --out DIR      folder for gpu.json, the logs and the figures (default: a new folder in /tmp)
#   --shards DIR   pairs of 128 px to train on (default: synthetic portraits, drawn and packed here)
#   --seconds N    how long all of it may take (default: 480)
#   --wheels DIR   wheels of all that this machine lacks, if it has no network, dist_sketch's too; see tests/README.md
#   --quick        tiny sizes, also on a CPU: shows that the script works, but the figures mean nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fail() { echo "gpu.sh: $*" >&2; exit 2; }

out="" shards="" budget=480 wheels="" quick=()
while [ $# -gt 0 ]; do
  case $1 in
    --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' tests/gpu.sh; exit ;;
    --quick) quick=(--quick); shift; continue ;;
    --out | --shards | --seconds | --wheels) [ $# -gt 1 ] || fail "$1 needs a value" ;;
    *) fail "$1 is not an option; bash tests/gpu.sh --help lists them" ;;
  esac
  case $1 in
    --out) out=$2 ;;
    --shards) shards=$2 ;;
    --seconds) budget=$2 ;;
    --wheels) wheels=$2 ;;
  esac
  shift 2
done
[[ $budget =~ ^[1-9][0-9]*$ ]] || fail "--seconds $budget: must be a whole number above 0"
[ -z "$shards" ] || [ -f "$shards/manifest.json" ] || fail "--shards $shards: holds no manifest.json; make it with dist-sketch pack"
[ -z "$wheels" ] || compgen -G "$wheels/*.whl" > /dev/null || fail "--wheels $wheels: holds no wheels"
if [ -n "$out" ]; then mkdir -p "$out"; else out=$(mktemp -d /tmp/dist-sketch-gpu-XXXXXX); fi
out=$(cd "$out" && pwd)
[ ! -e "$out/parts.tsv" ] || fail "--out $out: holds the results of an earlier call; give another folder"

[ ! -x .venv/bin/python ] || export PATH=$PWD/.venv/bin:$PATH
python=""
for name in python python3; do
  if "$name" -c "import torch" 2> /dev/null; then python=$(command -v "$name"); break; fi
done
[ -n "$python" ] || fail "neither python nor python3 can import torch"
if [ -n "$wheels" ]; then
  # Beside the machine's own packages, in a folder: a venv made from a venv would not see that one's torch.
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile \
    --target "$out/site" "$wheels"/*.whl || fail "--wheels $wheels: cannot be installed, see above"
  export PYTHONPATH=$PWD:$out/site${PYTHONPATH:+:$PYTHONPATH} # the code of this checkout comes first
fi
page() { "$python" tests/gpu_page.py "$@"; }
page machine "$out" "${quick[@]}"
echo "results: $out; at most $budget seconds"

# Usage: part NAME PERCENT COMMAND. Runs a command; what it prints goes to NAME.log. It may use its share of the time,
# and what the parts before have left of theirs.
shares=0
part() {
  local name=$1 code=0 began=$SECONDS left
  shares=$((shares + $2))
  left=$((budget * shares / 100 - SECONDS))
  shift 2
  if [ "$left" -lt 1 ]; then
    code=-1 # no time was left
  else
    # The status of a command that is cut off stays its own: 75 says that the training stopped and saved, for which it
    # gets a minute.
    timeout --preserve-status --signal=TERM --kill-after=60 "$left" "$@" > "$out/$name.log" 2>&1 || code=$?
  fi
  printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) >> "$out/parts.tsv"
  echo "$name: exit code $code, $((SECONDS - began)) s"
}
sketch=("$python" -m dist_sketch)
export WANDB_MODE=disabled

if [ ${#quick[@]} -gt 0 ]; then
  count=16 val=4 size=64 short=(--quick --repeats 1) portrait=() paper=() tests=(-k "fifty and cpu")
  train=(--generator.width 8 --train.epochs 3 --train.validate-interval-epochs 1 --track.log-interval-steps 1)
  train+=(--checkpoint.choose last --train.no-validate-fid --train.sample-interval-epochs 0)
else
  count=1057 val=105 size=128 short=(--repeats 3 --budget-s 12) train=() tests=() # as many pairs as FS2K's
  ! "$python" -c "import xdist" 2> /dev/null || tests=(--numprocesses 4)
  sizes=(--batch-sizes 4 8 16 32 64 128)
  portrait=(--size 128 --batch-size 4 "${sizes[@]}") paper=(--size 256 --batch-size 8 "${sizes[@]}")
  if ! "$python" -c "from dist_sketch.metrics.inception import find; raise SystemExit(find() is None)" 2> /dev/null; then
    train+=(--checkpoint.choose last)
    echo "The training chose no weights by KID: this machine lacks the weights of FID's network." | tee "$out/notes.txt"
  fi
fi

# What the targets need comes first.
if [ -z "$shards" ]; then
  shards=$out/shards
  part synth 6 "${sketch[@]}" synth "$out/pairs" --count $count --val $val --size $size
  part pack 4 "${sketch[@]}" pack "$out/pairs" --out "$shards" --size $size
else
  shares=10
fi
part step-portrait 14 "${sketch[@]}" bench step "${short[@]}" --preset portrait "${portrait[@]}" --json "$out/step-portrait.json"
part step-paper 20 "${sketch[@]}" bench step "${short[@]}" "${paper[@]}" --json "$out/step-paper.json"
part train 26 "${sketch[@]}" train --config portrait --data.shards "$shards" --out "$out/run" --track.wandb off "${train[@]}"
part tests 18 "$python" -m pytest tests/test_gpu_graphs.py tests/test_gpu.py tests/test_gpu_batches.py -vv --tb=short \
  -p no:cacheprovider --timeout=100 --timeout-method=thread "${tests[@]}"
part infer 5 "${sketch[@]}" bench infer "${short[@]}" --json "$out/infer.json"
part loader 7 "${sketch[@]}" bench loader "${short[@]}" --workers 4 --index 10000 --json "$out/loader.json"
page show "$out" "${quick[@]}"
