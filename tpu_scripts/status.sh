#!/usr/bin/env bash
# status.sh [--dry-run]: the slice, training on each worker with its last log line, and the run.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

state=$(slice_state)
say "slice $NAME: ${state:-not there}"
if [ "$state" = ACTIVE ]; then worker_states; fi
files=$(run_files)
if is_finished "$files"; then
  say "run $RUN: finished"
else
  step=$(last_checkpoint "$files")
  say "run $RUN: not finished; last checkpoint: ${step:-none}"
fi
