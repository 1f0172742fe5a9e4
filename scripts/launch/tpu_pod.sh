#!/usr/bin/env bash
# Do a run on every host of a Cloud TPU slice: TPU=my-slice ZONE=us-east5-b tpu_pod.sh
set -euo pipefail

TPU=${TPU:?name of the slice, as in: gcloud compute tpus tpu-vm list}
ZONE=${ZONE:?zone of the slice}
SHARED=${SHARED:-/mnt/shared}                         # a file system that is mounted on every host
CONFIG=${CONFIG:-$SHARED/settings.toml}
RUN=${RUN:-$SHARED/runs/$(basename "$CONFIG" .toml)}
VENV=${VENV:-$SHARED/venv}                            # with dorl-jax[tpu]

command="$VENV/bin/dorl-jax run --config $CONFIG --run $RUN --distributed --quiet"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command"
