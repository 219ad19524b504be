#!/bin/bash
# Runs an experiment on all hosts of a TPU pod slice; see README.md in this folder.
# Usage: NAME=slice ZONE=zone experiments/cluster/tpu_pod.sh --workdir DIR [flags]
set -euo pipefail
: "${NAME:?the name of the TPU slice}" "${ZONE:?its zone}"
experiment=${EXPERIMENT:-experiments/deeplab/v3plus_voc2012.py}
arguments=$(printf '%q ' "$@")

gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command \
  "cd segjax && .venv/bin/python $experiment --distributed.auto True --distributed.wait-seconds 300 $arguments"
