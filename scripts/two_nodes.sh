#!/bin/sh
# Two nodes of two processes each, simulated on this machine: what torchrun would start on each node runs here twice.
#   scripts/two_nodes.sh fit --config configs/digits_spiking.yaml --trainer.max_epochs 2
# On real nodes run the torchrun line once per node, with its number for --node-rank and the address of node 0.
set -eu
PYTHON=${PYTHON:-python}
PORT=${PORT:-29511}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

node() {
    number=$1
    shift
    "$PYTHON" -m torch.distributed.run --nnodes 2 --node-rank "$number" --nproc-per-node 2 \
        --master-addr 127.0.0.1 --master-port "$PORT" \
        -m lightning_polystep "$@" --trainer.devices 2 --trainer.num_nodes 2
}

node 1 "$@" &
second=$!
node 0 "$@" || status=$?
wait "$second" || status=$?
exit "${status:-0}"
