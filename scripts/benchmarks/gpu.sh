#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one call of at most 8 minutes.
#
#     bash scripts/benchmarks/gpu.sh [--dry-run] [FOLDER]
#
# Writes into FOLDER (default: gpu_results), as results come:
#   NAME.log     the output of a part
#   results.jsonl  the JSON lines of all parts, and a line for each part: its name, exit status and seconds
# Each part has its own time limit, and no part stops the others. Parts that the time no longer allows are named.
# --dry-run runs every part on the CPU with tiny sizes, to try out the script. Its numbers mean nothing.
# PYTHON is the interpreter to use, TOTAL the time for all parts in seconds.

set -u
cd "$(dirname "$0")/../.."
dry=0
if [ "${1:-}" = "--dry-run" ]; then dry=1; shift; fi
out=${1:-gpu_results}
python=${PYTHON:-python}
patience=$((1 + 9 * dry)) # a CPU may be slow or busy
total=${TOTAL:-$((470 * patience))}
mkdir -p "$out"
: > "$out/results.jsonl"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

# part NAME LIMIT COMMAND...: run a part for at most LIMIT seconds, or for what is left of the total.
part() {
    local name=$1 limit=$(($2 * patience)) began=$SECONDS status
    shift 2
    local left=$((total - SECONDS))
    if [ "$left" -lt "$limit" ]; then limit=$left; fi
    if [ "$limit" -lt 5 ]; then
        echo "{\"part\": \"$name\", \"status\": \"left out: the time is over\"}" | tee -a "$out/results.jsonl"
        return
    fi
    timeout --kill-after=5 "$limit" "$@" < /dev/null > "$out/$name.log" 2>&1
    status=$?
    grep -a '^{' "$out/$name.log" >> "$out/results.jsonl"
    echo "{\"part\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - began))}" | tee -a "$out/results.jsonl"
}

if [ "$dry" = 1 ]; then
    inference="--device cpu --output 48 64 --calls 2 --sides baseline eager:fp32 compile:bf16 native:bf16 native:fp32"
    training="--cpu --batch-size 1 --lq-size 16 --iterations 1 --rounds 1 --warmup 0 --images 1 --workers 1 --threads 1"
    sides=("ours, fp32" "ours, fp32, native")
    tests="--collect-only"
else
    inference="--device cuda"
    training="--batch-size 64 --lq-size 64 --iterations 20 --rounds 3 --warmup 1 --workers 8"
    sides=("ours, bf16, native, graph" "ours, fp32, native, graph" "ours, fp32" "ours, bf16, graph")
    tests=""
fi

part machine 30 "$python" -c '
import json, os, torch
cuda = torch.cuda.is_available()
gpu = torch.cuda.get_device_name() if cuda else None
memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
facts = {"gpu": gpu, "gpu_bytes": memory, "torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
print(json.dumps({"machine": facts}))'
# shellcheck disable=SC2086 # the options are several words
part inference_x4 75 "$python" scripts/benchmarks/gpu_inference.py --weights safmn-x4 --seconds 60 $inference
# shellcheck disable=SC2086
part "training_0" 70 "$python" scripts/benchmarks/benchmark_training.py --json $training --sides "${sides[0]}"
# shellcheck disable=SC2086
part inference_x2 75 "$python" scripts/benchmarks/gpu_inference.py --weights safmn-x2 --seconds 60 $inference
# shellcheck disable=SC2086
part tests 120 "$python" -m pytest -q -p no:cacheprovider tests/test_cuda.py $tests
for number in $(seq 1 $((${#sides[@]} - 1))); do
    # shellcheck disable=SC2086
    part "training_$number" 60 "$python" scripts/benchmarks/benchmark_training.py --json $training --sides "${sides[$number]}"
done
echo "results: $out/results.jsonl"
