#!/usr/bin/env bash
# loop.sh [--dry-run]: creates, sets up, trains and, when the run is finished, deletes the slice.
#
# A preempted slice is made again and training continues from its last checkpoint, as often as
# needed. Training that dies by itself is started again; after MAX_RESTARTS such starts in a row
# without a new checkpoint the loop ends with an error. Ctrl-C ends the loop alone: the slice stays,
# and loop.sh can be started again. Run it where it can stay, in tmux for example.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

leave() {
  say "interrupted. Slice $NAME is left as it is: it goes on training and costing money."
  say "To delete it: $HERE/delete.sh. To watch it again: $HERE/loop.sh."
  exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM

remove() {
  "$HERE/delete.sh" || die "slice $NAME could not be deleted and may cost money: $HERE/delete.sh"
}

give_up() {
  say "giving up: $*"
  if [ "${state-}" = ACTIVE ]; then try_log; fi
  if $DELETE_ON_FAILURE; then
    remove
  else
    say "slice $NAME is left and costs money. To delete it: $HERE/delete.sh."
  fi
  exit 1
}

try_log() { (worker all log 20 >&2) || say "the logs could not be read"; }

look() { # sets state, workers and, last, files: training that has ended well has finished by then
  state=$(slice_state) || return 1
  workers=''
  if [ "$state" = ACTIVE ]; then workers=$(worker_states) || return 1; fi
  files=$(run_files) || return 1
}

all_run() { awk '$2 == "running" { n++ } END { exit !(n && n == NR) }' <<<"$workers"; }
none_runs() { ! awk '$2 == "running" { found = 1 } END { exit !found }' <<<"$workers"; }

if $DRY_RUN; then
  ensure_bucket
  look
  for script in create setup train delete; do "$HERE/$script.sh" --dry-run; done
  exit 0
fi

ensure_bucket
restarts=0 silent=0 lingering=0 before='' begun=false up=false
while :; do
  if ! look; then
    silent=$((silent + 1))
    [ "$silent" -le 10 ] || give_up "gcloud or the workers did not answer $silent times in a row."
    pause
    continue
  fi
  silent=0

  if is_finished "$files"; then
    lingering=$((lingering + 1))
    if none_runs || [ "$lingering" -gt 10 ]; then
      say "run $RUN is finished: gs://$BUCKET/runs/$RUN"
      remove
      exit 0
    fi
    pause
    continue
  fi
  if [ "$state" = ACTIVE ] && all_run; then
    up=true
    pause
    continue
  fi

  step=$(last_checkpoint "$files")
  if $up && [ "$state" != ACTIVE ]; then
    say "slice $NAME was preempted (${state:-not there}); last checkpoint: ${step:-none}"
    up=false
  elif $begun; then
    if [ "$step" != "$before" ]; then restarts=0; fi
    restarts=$((restarts + 1))
    [ "$restarts" -le "$MAX_RESTARTS" ] ||
      give_up "training failed $restarts times in a row without a new checkpoint" \
        "(last checkpoint: ${step:-none}, MAX_RESTARTS: $MAX_RESTARTS)."
    say "training does not run (slice: ${state:-not there}); restart $restarts of $MAX_RESTARTS" \
      "without a new checkpoint"
    if [ "$state" = ACTIVE ] && ! none_runs; then "$HERE/stop.sh" || say "stop.sh failed"; fi
    pause
  fi
  begun=true
  before=$step
  if "$HERE/create.sh"; then
    up=true
    if ! { "$HERE/setup.sh" && "$HERE/train.sh"; }; then say "setup or start failed, see above"; fi
  fi
done
