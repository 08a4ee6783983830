#!/usr/bin/env bash
# create.sh [--dry-run]: the bucket and the TPU slice, where they are missing.
#
# Waits in the queue until the slice is ACTIVE. A request that has FAILED, or whose slice was
# preempted, is deleted and made again. From ACTIVE on the slice costs money: see delete.sh.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "$0")/common.sh"
start "$@"

ensure_bucket
request=(gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" "--node-id=$NAME"
  "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
if $SPOT; then request+=(--spot); fi
if [ -n "$VALID_UNTIL" ]; then request+=("--valid-until-duration=$VALID_UNTIL"); fi

DRY_STATE=''
dead=0
while :; do
  state=$(slice_state)
  case $state in
    ACTIVE) break ;;
    '')
      say "asking for $ACCELERATOR in $ZONE as $NAME (spot: $SPOT)"
      run "${request[@]}"
      DRY_STATE=ACTIVE
      ;;
    FAILED | SUSPENDED | ACTIVE/*)
      dead=$((dead + 1))
      [ "$dead" -le "$((MAX_RESTARTS + 1))" ] ||
        die "$dead requests in a row ended as $state; \`gcloud compute tpus queued-resources" \
          "describe $NAME ${PLACE[*]}\` says why."
      say "$NAME is $state: deleting this request and asking again"
      delete_queued
      if [ "$dead" -gt 1 ]; then pause; fi
      ;;
    *)
      say "$NAME is $state; next look in $POLL_SECONDS s"
      pause
      ;;
  esac
done
say "$NAME is ACTIVE and costs money until delete.sh"
